//! What a figure is: what was measured, and the bars it is held against. A bar is data, and whether it is met is
//! computed from the numbers whenever somebody asks.

use serde::Serialize;
use serde_json::{Value, json};

use crate::catalogue::FIGURES;
use crate::statistics::Samples;

/// One figure as the catalogue describes it.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) id: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    /// All must hold; none: shown only to compare.
    pub(crate) bars: &'static [Bar],
}

/// A bound on one number of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Bar {
    of: Number,
    is: Direction,
    limit: f64,
}

/// Which number a bar is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Number {
    P50,
    P99,
    /// The p50 divided by the baseline.
    Ratio,
    /// The p99 divided by the baseline, which is then a p99 as well.
    TailRatio,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Direction {
    AtMost,
    AtLeast,
}

impl Number {
    pub(crate) const fn at_most(self, limit: f64) -> Bar {
        Bar {
            of: self,
            is: Direction::AtMost,
            limit,
        }
    }

    pub(crate) const fn at_least(self, limit: f64) -> Bar {
        Bar {
            of: self,
            is: Direction::AtLeast,
            limit,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::Ratio => "ratio",
            Self::TailRatio => "p99 / baseline",
        }
    }
}

impl Bar {
    pub(crate) fn text(self) -> String {
        let sign = match self.is {
            Direction::AtMost => "≤",
            Direction::AtLeast => "≥",
        };
        format!("{} {sign} {}", self.of.name(), self.limit)
    }

    fn is_met(self, measured: &Measured) -> bool {
        let number = match self.of {
            Number::P50 => measured.p50,
            Number::P99 => measured.p99,
            Number::Ratio => measured.ratio(),
            Number::TailRatio => measured
                .p99
                .zip(measured.baseline)
                .map(|(p99, baseline)| p99 / baseline),
        };
        // What was not measured is not met.
        number.is_some_and(|number| match self.is {
            Direction::AtMost => number <= self.limit,
            Direction::AtLeast => number >= self.limit,
        })
    }
}

impl Figure {
    /// The figure of this id.
    pub(crate) fn find(id: &str) -> Option<&'static Self> {
        FIGURES.iter().find(|figure| figure.id == id)
    }

    /// # Panics
    /// When the catalogue lacks it.
    pub(crate) fn of(id: &str) -> &'static Self {
        Self::find(id).unwrap_or_else(|| panic!("`{id}` is not in the catalogue"))
    }
}

/// A figure with its numbers.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) figure: &'static Figure,
    pub(crate) n: usize,
    pub(crate) p50: Option<f64>,
    pub(crate) p95: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) baseline: Option<f64>,
}

impl Measured {
    /// Of samples.
    pub(crate) fn of(id: &str, samples: &Samples) -> Self {
        Self {
            figure: Figure::of(id),
            n: samples.count(),
            p50: Some(samples.percentile(50)),
            p95: Some(samples.percentile(95)),
            p99: Some(samples.percentile(99)),
            baseline: None,
        }
    }

    /// Of one number that has no distribution, such as a size.
    pub(crate) fn single(id: &str, number: f64) -> Self {
        Self {
            figure: Figure::of(id),
            n: 1,
            p50: Some(number),
            p95: None,
            p99: None,
            baseline: None,
        }
    }

    /// With what it is compared with.
    pub(crate) const fn against(mut self, baseline: f64) -> Self {
        self.baseline = Some(baseline);
        self
    }

    pub(crate) fn ratio(&self) -> Option<f64> {
        Some(self.p50? / self.baseline.filter(|baseline| *baseline > 0.0)?)
    }

    /// Nothing when there is no bar.
    pub(crate) fn is_met(&self) -> Option<bool> {
        let bars = self.figure.bars;
        (!bars.is_empty()).then(|| bars.iter().all(|bar| bar.is_met(self)))
    }

    /// As it stands in the file.
    pub(crate) fn to_json(&self) -> Value {
        let bars = (!self.figure.bars.is_empty()).then_some(self.figure.bars);
        json!({
            "id": self.figure.id,
            "unit": self.figure.unit,
            "n": self.n,
            "p50": rounded(self.p50),
            "p95": rounded(self.p95),
            "p99": rounded(self.p99),
            "baseline": rounded(self.baseline),
            "ratio": rounded(self.ratio()),
            "bar": bars,
            "met": self.is_met(),
        })
    }

    /// From the file; nothing for a figure that is no more. Only numbers are read: the rest is computed.
    pub(crate) fn from_json(value: &Value) -> Option<Self> {
        let number = |key: &str| value[key].as_f64();
        Some(Self {
            figure: Figure::find(value["id"].as_str()?)?,
            n: usize::try_from(value["n"].as_u64()?).ok()?,
            p50: number("p50"),
            p95: number("p95"),
            p99: number("p99"),
            baseline: number("baseline"),
        })
    }
}

/// Four decimals: more would be noise.
fn rounded(number: Option<f64>) -> Option<f64> {
    number.map(|number| (number * 1e4).round() / 1e4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURE: Figure = Figure {
        id: "x",
        what: "",
        unit: "ms",
        bars: &[Number::P50.at_most(10.0), Number::Ratio.at_least(1.3)],
    };

    fn measured(p50: f64, baseline: Option<f64>) -> Measured {
        Measured {
            figure: &FIGURE,
            n: 1,
            p50: Some(p50),
            p95: None,
            p99: None,
            baseline,
        }
    }

    #[test]
    fn whether_a_bar_is_met_follows_from_the_numbers() {
        assert_eq!(measured(10.0, Some(7.0)).is_met(), Some(true));
        assert_eq!(measured(10.1, Some(7.0)).is_met(), Some(false));
        assert_eq!(measured(9.0, Some(7.0)).is_met(), Some(false));
        assert_eq!(measured(9.0, None).is_met(), Some(false));
    }

    #[test]
    fn every_figure_comes_back_from_the_file_as_it_went_in() {
        for figure in FIGURES {
            let went = Measured::single(figure.id, 1.5).against(3.0);
            let back = Measured::from_json(&went.to_json()).unwrap();
            assert_eq!(back.to_json(), went.to_json());
            assert_eq!(back.ratio(), Some(0.5));
        }
    }
}
