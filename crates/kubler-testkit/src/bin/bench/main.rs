//! `make bench`: measures what Kubler promises in figures, in turns with separate programs that do the same without
//! it. Prints a table and writes `bench.json` beside what cargo builds.
//!
//!     bench                     all figures
//!     bench ID[,ID...]          the figures of the families that hold these
//!     bench --quick [ID...]     a tenth of it, to see that everything works; not kept
//!     bench --long [ID...]      what needs a machine of its own as well: a hundred environments at once
//!     bench --markdown PAGE     puts the table of the last figures into a page
//!
//! A bar that is not met is said loudly and is no failure; what could not be measured is one.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a measurement talks, and stops at the first thing that does not hold"
)]

mod catalogue;
mod cold;
mod command_line;
mod endings;
mod figure;
mod flood;
mod gateway;
mod idle;
mod ledger;
mod machine;
mod many;
mod memory;
mod namespaces;
mod neighbour;
mod recovery;
mod report;
mod statistics;
mod world;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};

use self::figure::{Figure, Measured};
use self::report::Report;
use self::world::{Length, World};

/// Figures that are taken together.
struct Family {
    ids: &'static [&'static str],
    measure: fn(World) -> Measuring,
}

type Measuring = Pin<Box<dyn Future<Output = Vec<Measured>> + Send>>;

/// The short ones first, so that somebody who watches sees something soon.
const FAMILIES: &[Family] = &[
    Family {
        ids: command_line::IDS,
        measure: |world| Box::pin(command_line::measure(world)),
    },
    Family {
        ids: ledger::IDS,
        measure: |world| Box::pin(ledger::measure(world)),
    },
    Family {
        ids: gateway::LATENCY_IDS,
        measure: |world| Box::pin(gateway::latency(world)),
    },
    Family {
        ids: gateway::THROUGHPUT_IDS,
        measure: |world| Box::pin(gateway::throughput(world)),
    },
    Family {
        ids: gateway::WATCH_IDS,
        measure: |world| Box::pin(gateway::watch(world)),
    },
    Family {
        ids: flood::IDS,
        measure: |world| Box::pin(flood::measure(world)),
    },
    Family {
        ids: cold::IDS,
        measure: |world| Box::pin(cold::measure(world)),
    },
    Family {
        ids: endings::IDS,
        measure: |world| Box::pin(endings::measure(world)),
    },
    Family {
        ids: recovery::IDS,
        measure: |world| Box::pin(recovery::measure(world)),
    },
    Family {
        ids: neighbour::IDS,
        measure: |world| Box::pin(neighbour::measure(world)),
    },
    Family {
        ids: namespaces::COLD_IDS,
        measure: |world| Box::pin(namespaces::cold(world)),
    },
    Family {
        ids: namespaces::GONE_IDS,
        measure: |world| Box::pin(namespaces::gone(world)),
    },
    Family {
        ids: namespaces::MANY_IDS,
        measure: |world| Box::pin(namespaces::many(world)),
    },
    Family {
        ids: idle::IDS,
        measure: |world| Box::pin(idle::measure(world)),
    },
    Family {
        ids: memory::IDS,
        measure: |world| Box::pin(memory::measure(world)),
    },
    Family {
        ids: many::IDS,
        measure: |world| Box::pin(many::measure(world)),
    },
];

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let target = target();
    match &arguments[..] {
        [flag, page] if flag == "--markdown" => {
            Report::read(&target).put_into(Path::new(page));
            ExitCode::SUCCESS
        }
        [flag, rest @ ..] if flag == "--quick" => start(&target, Length::Quick, rest).await,
        [flag, rest @ ..] if flag == "--long" => start(&target, Length::Long, rest).await,
        rest => start(&target, Length::Full, rest).await,
    }
}

async fn start(target: &Path, length: Length, ids: &[String]) -> ExitCode {
    match ids {
        [] => run(target, length, FAMILIES.iter().collect()).await,
        [ids] => match chosen(ids) {
            Ok(families) => run(target, length, families).await,
            Err(unknown) => {
                println!("bench: there is no figure `{unknown}`; there are:");
                for figure in catalogue::FIGURES {
                    println!("  {:<28} {}", figure.id, figure.what);
                }
                ExitCode::FAILURE
            }
        },
        _ => {
            println!("usage: bench [--quick|--long] [ID[,ID...]] | --markdown PAGE");
            ExitCode::FAILURE
        }
    }
}

/// Where cargo has put this program's profile.
fn target() -> PathBuf {
    let program = std::env::current_exe().expect("this program's path");
    let target = program.ancestors().nth(2).expect("cargo's folder");
    target.to_owned()
}

/// The families that hold these figures.
fn chosen(ids: &str) -> Result<Vec<&'static Family>, String> {
    let ids: Vec<&str> = ids.split(',').map(str::trim).collect();
    if let Some(unknown) = ids.iter().find(|id| Figure::find(id).is_none()) {
        return Err((*unknown).to_owned());
    }
    let holds = |family: &&Family| family.ids.iter().any(|id| ids.contains(id));
    Ok(FAMILIES.iter().filter(holds).collect())
}

async fn run(target: &Path, length: Length, families: Vec<&'static Family>) -> ExitCode {
    let machine = machine::describe(target);
    println!("bench: {machine}");
    let world = World::find(target.to_owned(), length);
    let mut report = Report::read(target);
    let (mut measured, mut failed) = (Vec::new(), Vec::new());
    for family in families {
        println!("bench: {}", family.ids.join(", "));
        let began = Instant::now();
        // A task of its own: what panics in it fails these figures and no others, after everything was ended.
        let mut task = tokio::spawn((family.measure)(world.clone()));
        let figures = tokio::select! {
            figures = &mut task => figures,
            () = interruption() => {
                task.abort();
                let _ = task.await;
                println!("bench: interrupted");
                return ExitCode::FAILURE;
            }
        };
        match figures {
            Ok(figures) => {
                measured.extend(family.ids);
                report.merge(figures, &machine);
                if length != Length::Quick {
                    report.write(target);
                }
            }
            Err(_) => failed.extend(family.ids),
        }
        println!("bench: took {:.0} s", began.elapsed().as_secs_f64());
    }
    match length {
        Length::Full | Length::Long => {
            println!("bench: written to {}", report::file(target).display())
        }
        Length::Quick => println!("bench: a quick run, not written to any file"),
    }
    summary(&report, &measured, &failed)
}

/// Resolves when somebody wants this to end.
async fn interruption() {
    let mut terminate = signal(SignalKind::terminate()).expect("a signal");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

fn summary(report: &Report, measured: &[&str], failed: &[&str]) -> ExitCode {
    println!("\n{}\n", report.table(measured));
    let unmet = report.unmet(measured);
    if !unmet.is_empty() {
        println!("BARS NOT MET: {}", unmet.join(", "));
    }
    if !failed.is_empty() {
        println!("COULD NOT BE MEASURED: {}", failed.join(", "));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_measured_by_one_family() {
        for figure in catalogue::FIGURES {
            let holding = FAMILIES
                .iter()
                .filter(|family| family.ids.contains(&figure.id));
            assert_eq!(holding.count(), 1, "{}", figure.id);
        }
    }
}
