//! How the bytes of a changed protocol fall into frames, read as they pass.
//!
//! Whoever carries such bytes may add a frame of its own, a ping or the reason of an end, only between two frames
//! of others. The readers here know where that is, however the bytes are cut, and keep nothing of what passes but a
//! bounded part of what they were asked to keep.

pub mod spdy;
pub mod websocket;
