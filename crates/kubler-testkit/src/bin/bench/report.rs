//! Shows figures, and keeps them: `bench.json` holds the latest of each, whoever measured which when.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::catalogue::FIGURES;
use crate::figure::Measured;

/// Between these lines a page holds what `--markdown` writes.
const BEGIN: &str = "<!-- figures: written by `make bench-docs` -->";
const END: &str = "<!-- end of figures -->";
const COLUMNS: [&str; 11] = [
    "id", "unit", "n", "p50", "p95", "p99", "baseline", "ratio", "bar", "met", "what",
];

/// The latest of each figure, and on what it was taken.
#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: BTreeMap<&'static str, Measured>,
    machines: BTreeMap<String, String>,
}

/// Where the figures are kept.
pub(crate) fn file(target: &Path) -> PathBuf {
    target.join("bench.json")
}

/// Beside it, since the figures' own form has no room for it.
fn machines_file(target: &Path) -> PathBuf {
    target.join("bench-machines.json")
}

impl Report {
    /// What was measured before.
    pub(crate) fn read(target: &Path) -> Self {
        let json = |path: PathBuf| -> Value {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            serde_json::from_str(&text).unwrap_or_default()
        };
        let known = json(file(target));
        let known = known.as_array().into_iter().flatten();
        Self {
            figures: known
                .filter_map(Measured::from_json)
                .map(|measured| (measured.figure.id, measured))
                .collect(),
            machines: serde_json::from_value(json(machines_file(target))).unwrap_or_default(),
        }
    }

    /// Takes new figures in, in place of older ones.
    pub(crate) fn merge(&mut self, measured: Vec<Measured>, machine: &str) {
        for one in measured {
            self.machines
                .insert(one.figure.id.to_owned(), machine.to_owned());
            self.figures.insert(one.figure.id, one);
        }
    }

    /// In the order of the catalogue.
    fn all(&self) -> impl Iterator<Item = &Measured> {
        FIGURES
            .iter()
            .filter_map(|figure| self.figures.get(figure.id))
    }

    /// Writes both files.
    pub(crate) fn write(&self, target: &Path) {
        let figures: Vec<_> = self.all().map(Measured::to_json).collect();
        let write = |path: PathBuf, value: serde_json::Result<String>| {
            std::fs::write(&path, value.expect("JSON") + "\n")
                .unwrap_or_else(|error| panic!("`{}`: {error}", path.display()))
        };
        write(file(target), serde_json::to_string_pretty(&figures));
        write(
            machines_file(target),
            serde_json::to_string_pretty(&self.machines),
        );
    }

    /// For a terminal.
    pub(crate) fn table(&self, ids: &[&str]) -> String {
        let mut rows = vec![COLUMNS.map(str::to_owned)];
        rows.extend(
            self.all()
                .filter(|one| ids.contains(&one.figure.id))
                .map(cells),
        );
        let width = |column: usize| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<_> = (0..COLUMNS.len()).map(width).collect();
        let line = |row: &[String; 11]| {
            let cells = row.iter().zip(&widths);
            let padded = cells.map(|(cell, width)| format!("{cell:<width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        rows.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    /// What did not reach its bar.
    pub(crate) fn unmet(&self, ids: &[&str]) -> Vec<&'static str> {
        let unmet = self.all().filter(|one| one.is_met() == Some(false));
        unmet
            .map(|one| one.figure.id)
            .filter(|id| ids.contains(id))
            .collect()
    }

    /// For a page.
    fn markdown(&self) -> String {
        let row = |cells: &[String]| format!("| {} |", cells.join(" | "));
        let mut lines = vec![row(&COLUMNS.map(str::to_owned)), "|---".repeat(11) + "|"];
        lines.extend(self.all().map(|one| row(&cells(one))));
        let mut machines: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for one in self.all() {
            let machine = self.machines.get(one.figure.id);
            let machine = machine.map_or("unknown", String::as_str);
            machines.entry(machine).or_default().push(one.figure.id);
        }
        let only = machines.len() == 1;
        for (machine, ids) in machines {
            let of = if only {
                String::new()
            } else {
                format!("{}: ", ids.join(", "))
            };
            lines.push(format!("\nTaken on: {of}{machine}."));
        }
        lines.join("\n")
    }

    /// Puts the table into a page, in place of the one before.
    pub(crate) fn put_into(&self, page: &Path) {
        let text = std::fs::read_to_string(page).expect("the page");
        let (before, rest) = text.split_once(BEGIN).expect("the page's first mark");
        let (_, after) = rest.split_once(END).expect("the page's last mark");
        let text = format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", self.markdown());
        std::fs::write(page, text).expect("the page");
    }
}

fn cells(one: &Measured) -> [String; 11] {
    let text = |number: Option<f64>| number.map_or_else(|| "–".to_owned(), short);
    let bars = one.figure.bars.iter().map(|bar| bar.text());
    let met = match one.is_met() {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "–",
    };
    [
        one.figure.id.to_owned(),
        one.figure.unit.to_owned(),
        one.n.to_string(),
        text(one.p50),
        text(one.p95),
        text(one.p99),
        text(one.baseline),
        text(one.ratio()),
        bars.collect::<Vec<_>>().join(", "),
        met.to_owned(),
        one.figure.what.to_owned(),
    ]
}

/// Three digits that mean something.
fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 1.0 => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}
