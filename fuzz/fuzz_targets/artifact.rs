#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    kubler_core::fuzz::run("artifact", input);
});
