//! Images by the parts of their names, so that whoever searches need not write a name as the job did.

/// The registry of a name without one.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The tag of a name without one.
const DEFAULT_TAG: &str = "latest";
/// Shortest digest, with its algorithm: less is not told from a tag.
const DIGEST_BYTES_MIN: usize = 40;

/// An image's name, with all that was left out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Registry and path, as `docker.io/library/nginx`.
    pub repository: String,
    /// The tag; none when only a digest says which it is.
    pub tag: Option<String>,
    /// The digest, as `sha256:…`.
    pub digest: Option<String>,
}

impl Image {
    /// Reads a name as container runtimes do; `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (repository, tag, digest) = parts(text)?;
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG),
            (tag, _) => tag,
        };
        Some(Self {
            repository: with_registry(repository),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// The last part of its path, as `nginx`.
    pub fn last(&self) -> &str {
        let last = self.repository.rsplit('/').next();
        last.unwrap_or(&self.repository)
    }
}

/// What somebody searches for: as much of a name as they know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageQuery {
    /// Registry and path, with all that was left out.
    pub repository: Option<String>,
    /// The end of the path, where no registry was given: `acme/web` is also meant by whoever has it in their own one.
    pub ending: Option<String>,
    /// The tag, if it matters.
    pub tag: Option<String>,
    /// The digest, if it matters.
    pub digest: Option<String>,
}

impl ImageQuery {
    /// The same by the end of the name alone, in whatever registry; `None` when a registry was given.
    pub fn anywhere(self) -> Option<Self> {
        self.ending.is_some().then_some(Self {
            repository: None,
            ..self
        })
    }

    /// The same in the one repository that a name means to a container runtime.
    #[must_use]
    pub fn exactly(self) -> Self {
        Self {
            ending: None,
            ..self
        }
    }

    /// Reads `name`, `name:tag`, `name@digest` or a digest alone; `None` when it can be none of them.
    pub fn parse(text: &str) -> Option<Self> {
        let bare = text.strip_prefix('@').unwrap_or(text);
        if is_digest(bare) {
            return Some(Self {
                digest: Some(bare.to_owned()),
                ..Self::default()
            });
        }
        let (repository, tag, digest) = parts(text)?;
        Some(Self {
            repository: Some(with_registry(repository)),
            ending: (!has_registry(repository)).then(|| repository.to_owned()),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }
}

/// Repository, tag and digest, as they are written.
type Parts<'a> = (&'a str, Option<&'a str>, Option<&'a str>);

fn parts(text: &str) -> Option<Parts<'_>> {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    let after_registry = name.rfind('/').map_or(0, |slash| slash + 1);
    let colon = name.get(after_registry..)?.find(':');
    let (repository, tag) = match colon.map(|colon| colon + after_registry) {
        Some(colon) => (name.get(..colon)?, Some(name.get(colon + 1..)?)),
        None => (name, None),
    };
    let is_part = |part: &str| {
        let is_inner =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '[' | ']');
        !part.is_empty() && part.chars().all(is_inner)
    };
    let is_tag = |tag: &str| {
        let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        !tag.is_empty() && tag.chars().all(is_inner)
    };
    let is_name = repository.split('/').all(is_part)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest);
    is_name.then_some((repository, tag, digest))
}

fn is_digest(text: &str) -> bool {
    text.len() >= DIGEST_BYTES_MIN
        && text.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty()
                && algorithm.bytes().all(|byte| byte.is_ascii_alphanumeric())
                && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

fn has_registry(repository: &str) -> bool {
    repository.split_once('/').is_some_and(|(first, _)| {
        first == "localhost"
            || first.contains(['.', ':'])
            || first.chars().any(|c| c.is_ascii_uppercase())
    })
}

fn with_registry(repository: &str) -> String {
    let path = match repository
        .strip_prefix("index.docker.io/")
        .or_else(|| repository.strip_prefix("docker.io/"))
    {
        Some(path) => path,
        None if has_registry(repository) => return repository.to_owned(),
        None => repository,
    };
    if path.contains('/') {
        format!("{DEFAULT_REGISTRY}/{path}")
    } else {
        format!("{DEFAULT_REGISTRY}/library/{path}")
    }
}
