//! Percentiles of samples.

/// Samples of one thing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn add(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// The nearest-rank percentile: always one of the samples.
    ///
    /// # Panics
    /// When there is no sample.
    pub(crate) fn percentile(&self, percent: u32) -> f64 {
        assert!(!self.0.is_empty(), "nothing was measured");
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent as usize).div_ceil(100);
        sorted[rank.clamp(1, sorted.len()) - 1]
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }
}

impl Extend<f64> for Samples {
    fn extend<T: IntoIterator<Item = f64>>(&mut self, samples: T) {
        self.0.extend(samples);
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<T: IntoIterator<Item = f64>>(samples: T) -> Self {
        Self(samples.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_nearest_rank() {
        let hundred: Samples = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            [50, 95, 99].map(|percent| hundred.percentile(percent)),
            [50.0, 95.0, 99.0]
        );
        let three: Samples = [3.0, 1.0, 2.0].into_iter().collect();
        assert_eq!(
            [50, 95, 99].map(|percent| three.percentile(percent)),
            [2.0, 3.0, 3.0]
        );
    }
}
