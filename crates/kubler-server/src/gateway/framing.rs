//! Where an answer may be ended so that the client understands, and the last bytes that say why.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use kubler_core::ids::RequestId;
use kubler_core::request::Span;

use super::protobuf;
use super::status::Refused;

/// How the bytes of an answer fall into parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// A watch in JSON: it ends between two lines.
    Lines {
        /// Whether everything sent so far is whole lines.
        is_between: bool,
    },
    /// A watch in protobuf: it ends between two frames.
    Frames(Frames),
    /// A followed log: anywhere.
    Text,
    /// Nowhere: a part of it would be taken for the whole, so the connection is broken off.
    Whole,
}

/// How far a row of frames has come: each is its length in four bytes, the highest first, and so many bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Frames {
    length: u32,
    length_bytes: u8,
    left: u32,
}

impl Framing {
    /// How an answer of this span with these headers is framed.
    pub(super) fn of(span: Span, headers: &HeaderMap) -> Self {
        // Nothing can be put into the middle of compressed bytes.
        if headers.contains_key(CONTENT_ENCODING) {
            return Self::Whole;
        }
        let content_type = headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_ascii_lowercase();
        let mut parts = content_type.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        match (span, media_type) {
            (Span::Watch, "application/json") => Self::Lines { is_between: true },
            (Span::Watch, protobuf::MEDIA_TYPE) if parts.any(|part| part == "stream=watch") => {
                Self::Frames(Frames::default())
            }
            (Span::Long, "text/plain") => Self::Text,
            (Span::Short | Span::Watch | Span::Long, _) => Self::Whole,
        }
    }

    /// Notes what was sent.
    pub(super) fn passed(&mut self, bytes: &[u8]) {
        match self {
            Self::Lines { is_between } => {
                if let Some(last) = bytes.last() {
                    *is_between = *last == b'\n';
                }
            }
            Self::Frames(frames) => frames.passed(bytes),
            Self::Text | Self::Whole => {}
        }
    }

    /// The last bytes of an answer that is ended here and now; none where it can only be broken off.
    pub(super) fn last(&self, refused: &Refused, request_id: RequestId) -> Option<Bytes> {
        match self {
            Self::Lines { is_between: true } => Some(refused.watch_event(request_id)),
            Self::Frames(frames) if frames.is_between() => {
                Some(protobuf::watch_event(refused, request_id))
            }
            Self::Text => Some(Bytes::new()),
            Self::Lines { is_between: false } | Self::Frames(_) | Self::Whole => None,
        }
    }
}

impl Frames {
    fn is_between(self) -> bool {
        self.length_bytes == 0 && self.left == 0
    }

    fn passed(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let taken = usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                // What is taken is at most what is left.
                self.left = self
                    .left
                    .saturating_sub(u32::try_from(taken).unwrap_or(u32::MAX));
                bytes = bytes.get(taken..).unwrap_or_default();
                continue;
            }
            self.length = (self.length << 8) | u32::from(*first);
            self.length_bytes += 1;
            if self.length_bytes == 4 {
                *self = Self {
                    left: self.length,
                    ..Self::default()
                };
            }
            bytes = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framing(span: Span, content_type: &str, encoding: Option<&str>) -> Framing {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, content_type.parse().unwrap());
        if let Some(encoding) = encoding {
            headers.insert(CONTENT_ENCODING, encoding.parse().unwrap());
        }
        Framing::of(span, &headers)
    }

    #[test]
    fn e1_only_what_is_known_to_have_parts_is_ended_between_them() {
        let lines = Framing::Lines { is_between: true };
        let frames = Framing::Frames(Frames::default());
        for (span, content_type, encoding, expected) in [
            (Span::Watch, "application/json", None, lines),
            (Span::Watch, "application/json;stream=watch", None, lines),
            (
                Span::Watch,
                "application/vnd.kubernetes.protobuf;stream=watch",
                None,
                frames,
            ),
            (
                Span::Watch,
                "application/vnd.kubernetes.protobuf; Stream=watch",
                None,
                frames,
            ),
            (
                Span::Watch,
                "application/vnd.kubernetes.protobuf",
                None,
                Framing::Whole,
            ),
            (Span::Watch, "application/jsonlike", None, Framing::Whole),
            (
                Span::Watch,
                "application/json",
                Some("gzip"),
                Framing::Whole,
            ),
            (Span::Watch, "application/cbor-seq", None, Framing::Whole),
            (Span::Long, "text/plain", None, Framing::Text),
            (Span::Short, "application/json", None, Framing::Whole),
        ] {
            assert_eq!(
                framing(span, content_type, encoding),
                expected,
                "{span:?} {content_type} {encoding:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn e1_frames_are_counted_however_they_are_cut(
            lengths in proptest::collection::vec(0_u32..2000, 0..20),
            cuts in proptest::collection::vec(1_usize..700, 1..200),
        ) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for length in lengths {
                bytes.extend(length.to_be_bytes());
                bytes.resize(bytes.len() + length as usize, 0xff);
                ends.push(bytes.len());
            }
            let (mut frames, mut at) = (Frames::default(), 0);
            for cut in cuts.into_iter().cycle() {
                prop_assert_eq!(frames.is_between(), ends.contains(&at), "after {} bytes", at);
                if at == bytes.len() {
                    break;
                }
                let next = (at + cut).min(bytes.len());
                frames.passed(&bytes[at..next]);
                at = next;
            }
        }
    }
}
