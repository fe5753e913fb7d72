//! Searching: by page, newest first.

use std::borrow::Cow;

use jiff::Timestamp;
use kubler_core::artifact::ImageQuery;
use kubler_core::environment::{Environment, Phase};
use kubler_core::ids::EnvironmentId;

use super::{Store, StoreError};

/// Most environments one search returns.
pub const SEARCH_MAX: usize = 200;
/// Environments in one page of a search. One more than is returned, so that one page tells whether there are more.
pub const SEARCH_PAGE: usize = SEARCH_MAX + 1;

/// What to search for. All given parts must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Search {
    /// Organization id.
    pub organization_id: Option<String>,
    /// Pipeline id: of the pipeline that asks.
    pub project_id: Option<String>,
    /// Organization slug.
    pub organization: Option<String>,
    /// Pipeline id or slug.
    pub pipeline: Option<String>,
    /// Build number.
    pub build_number: Option<u64>,
    /// Build id.
    pub build_id: Option<String>,
    /// Job id.
    pub job_id: Option<String>,
    /// Commit, or its beginning (at least 7 digits).
    pub commit: Option<String>,
    /// An image that it ran, or was asked to run.
    pub image: Option<ImageQuery>,
    /// Phase.
    pub phase: Option<Phase>,
    /// Only what is not gone.
    pub remaining: bool,
}

impl Search {
    /// A pipeline as tables show it: `pipeline`, or `organization/pipeline`.
    pub fn name_pipeline(&mut self, text: &str) {
        let (organization, pipeline) = match text.rsplit_once('/') {
            Some((organization, pipeline)) => (Some(organization.to_owned()), pipeline),
            None => (None, text),
        };
        self.organization = organization;
        self.pipeline = Some(pipeline.to_owned());
    }
}

/// Where a page ended, and the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    created_at: Timestamp,
    id: EnvironmentId,
}

impl Place {
    /// Right after this environment.
    pub const fn after(environment: &Environment) -> Self {
        Self {
            created_at: environment.created_at,
            id: environment.id,
        }
    }
}

/// Conditions with a `?` for each value.
struct Conditions {
    texts: Vec<Cow<'static, str>>,
    values: Vec<String>,
}

impl Conditions {
    /// Adds a condition when there is a value for it, bound to each of its `?`.
    fn add(&mut self, condition: &'static str, value: Option<impl ToString>) {
        if let Some(value) = value {
            let marks = condition.matches('?').count();
            self.values
                .extend(std::iter::repeat_n(value.to_string(), marks));
            self.texts.push(condition.into());
        }
    }

    /// All of it about one image. Repository, last part and digest have an index each.
    fn add_image(&mut self, image: &ImageQuery) {
        let ending = image.ending.as_deref();
        let last = ending.and_then(|ending| ending.rsplit('/').next());
        let parts = [
            ("repository = ?", image.repository.as_deref()),
            ("last = ?", last),
            ("substr(repository, -length(?) - 1) = '/' || ?", ending),
            ("tag = ?", image.tag.as_deref()),
            ("digest = ?", image.digest.as_deref()),
        ];
        let mut of_one = Self {
            texts: Vec::new(),
            values: Vec::new(),
        };
        for (condition, value) in parts {
            of_one.add(condition, value);
        }
        self.texts.push(
            format!(
                "id IN (SELECT environment_id FROM images WHERE {})",
                of_one.texts.join(" AND ")
            )
            .into(),
        );
        self.values.extend(of_one.values);
    }

    fn of(search: &Search) -> Self {
        let mut conditions = Self {
            texts: vec!["1=1".into()],
            values: Vec::new(),
        };
        let it = &mut conditions;
        it.add("organization_id = ?", search.organization_id.as_deref());
        it.add("project_id = ?", search.project_id.as_deref());
        it.add(
            "json_extract(document, '$.identity.organization.slug') = ?",
            search.organization.as_deref(),
        );
        it.add(
            "(project_slug = ? OR project_id = ?)",
            search.pipeline.as_deref(),
        );
        it.add("run_number = CAST(? AS INTEGER)", search.build_number);
        it.add("run_id = ?", search.build_id.as_deref());
        it.add(
            "(job_id = ? OR id IN (SELECT environment_id FROM attached WHERE job_id = ?))",
            search.job_id.as_deref(),
        );
        it.add(
            "substr(source_commit, 1, length(?)) = ?",
            search.commit.as_deref(),
        );
        it.add("phase = ?", search.phase.map(Phase::as_str));
        if let Some(image) = &search.image {
            it.add_image(image);
        }
        let gone = search.remaining.then_some(Phase::Gone.as_str());
        it.add("phase <> ?", gone);
        conditions
    }
}

impl Store {
    /// One page of at most [`SEARCH_PAGE`], newest first, from `after` on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn search(
        &self,
        search: &Search,
        after: Option<Place>,
    ) -> Result<Vec<Environment>, StoreError> {
        let mut conditions = Conditions::of(search);
        if let Some(place) = after {
            let moment = place.created_at.as_microsecond().to_string();
            conditions
                .values
                .extend([moment.clone(), moment, place.id.to_string()]);
            conditions.texts.push(
                "(created_at < CAST(? AS INTEGER) OR (created_at = CAST(? AS INTEGER) AND id > ?))"
                    .into(),
            );
        }
        let sql = format!(
            "SELECT document FROM environments WHERE {} ORDER BY created_at DESC, id LIMIT {SEARCH_PAGE}",
            conditions.texts.join(" AND ")
        );
        let values: Vec<&str> = conditions.values.iter().map(String::as_str).collect();
        self.select(&sql, &values).await
    }
}
