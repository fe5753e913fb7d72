//! Buildkite's claims as an identity.
