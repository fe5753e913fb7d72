//! engine/local
