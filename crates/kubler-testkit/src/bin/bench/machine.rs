//! On what a figure was taken: without this no two figures can be compared.

use std::path::Path;
use std::process::Command;

/// One line: processor, memory, kernel, file system, programs, commit and date.
pub(crate) fn describe(target: &Path) -> String {
    let processors = read("/proc/cpuinfo");
    let model = field(&processors, "model name").unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = read("/proc/meminfo");
    let memory = field(&memory, "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(0, |kibibytes| kibibytes.div_ceil(1 << 20));
    let kernel = read("/proc/sys/kernel/osrelease");
    let commit = said("git", &["describe", "--always", "--dirty", "--abbrev=12"]);
    #[allow(
        clippy::disallowed_methods,
        reason = "a measurement says when it was taken"
    )]
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC");
    format!(
        "{model}, {cores} cores, {memory} GiB, Linux {}, ledger on {}, {}, {}, commit {commit}, {date}",
        kernel.trim(),
        file_system(target),
        said("rustc", &["--version"]),
        said("go", &["version"]).trim_start_matches("go version "),
    )
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The value of `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    let mut values = pairs.filter(|(key, _)| key.trim() == name);
    values.next().map(|(_, value)| value.trim())
}

/// What a program prints; a machine without it says so.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    output
        .ok()
        .filter(|output| output.status.success())
        .map_or_else(
            || format!("no {program}"),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
}

/// The kind of file system below a folder: the longest mount point that is above it.
fn file_system(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let mounts = read("/proc/self/mounts");
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let above = mounts.filter(|(point, _)| folder.starts_with(point));
    above
        .max_by_key(|(point, _)| point.len())
        .map_or_else(|| "unknown".to_owned(), |(_, kind)| kind.to_owned())
}
