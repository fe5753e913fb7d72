//! The `kubler` command: what every job downloads and starts.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::figure::Measured;
use crate::statistics::Samples;
use crate::world::{World, milliseconds};

pub(crate) const IDS: &[&str] = &["cli_size", "cli_start"];
const ROUNDS: usize = 500;
/// Starts before the first that counts.
const WARM_UP: usize = 20;

pub(crate) async fn measure(world: World) -> Vec<Measured> {
    let kubler = world.target.join("dist/kubler");
    let bytes = std::fs::metadata(&kubler)
        .unwrap_or_else(|error| {
            panic!(
                "`{}`: {error}: run `cargo build --profile dist -p kubler-cli`",
                kubler.display()
            )
        })
        .len();
    let bytes = f64::from(u32::try_from(bytes).expect("a size below 4 GB"));
    let rounds = world.length.rounds(ROUNDS);
    let started = tokio::task::spawn_blocking(move || starts(&kubler, rounds)).await;
    let (own, nothing) = started.expect("starts");
    vec![
        Measured::single("cli_size", bytes / 1e6),
        Measured::of("cli_start", &own).against(nothing.median()),
    ]
}

fn starts(kubler: &Path, rounds: usize) -> (Samples, Samples) {
    let (mut own, mut nothing) = (Samples::default(), Samples::default());
    for round in 0..WARM_UP + rounds {
        let (took, baseline) = (
            start(kubler, &["--version"]),
            start(Path::new("/bin/true"), &[]),
        );
        if round >= WARM_UP {
            own.add(took);
            nothing.add(baseline);
        }
    }
    (own, nothing)
}

/// From before the start until it was waited for.
fn start(program: &Path, arguments: &[&str]) -> f64 {
    let began = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    let took = milliseconds(began.elapsed());
    assert!(
        status.expect("a program that starts").success(),
        "`{}` failed",
        program.display()
    );
    took
}
