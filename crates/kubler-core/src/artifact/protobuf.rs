//! Bodies in Kubernetes' protobuf, walked by the numbers of the fields that are looked for. Controllers in Go write it.

use prost::bytes::Buf as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::{Found, NotUnderstood, Workload};

/// What an object in protobuf begins with.
const MAGIC: &[u8] = b"k8s\0";
/// `runtime.Unknown.raw`: the object.
const RAW: u32 = 2;
/// `metadata` of every object.
const METADATA: u32 = 1;

pub(super) fn read(workload: &Workload, body: &[u8]) -> Result<Found, NotUnderstood> {
    let mut found = Found::default();
    let envelope = body.strip_prefix(MAGIC).ok_or(NotUnderstood::Unreadable)?;
    let walked = fields(envelope, &mut |number, envelope| {
        if number != RAW {
            return Some(());
        }
        fields(envelope, &mut |number, metadata| match number {
            METADATA => fields(metadata, &mut |number, name| match number {
                1 => keep(&mut found.name, name),
                2 => keep(&mut found.generate_name, name),
                _ => Some(()),
            }),
            _ => Some(()),
        })?;
        walk(envelope, workload.numbers, &mut |spec| {
            pod(spec, &mut found.images)
        })
    });
    walked.map(|()| found).ok_or(NotUnderstood::Unreadable)
}

fn keep(place: &mut Option<String>, text: &[u8]) -> Option<()> {
    let text = std::str::from_utf8(text).ok()?;
    *place = (!text.is_empty()).then(|| text.to_owned());
    Some(())
}

/// `core/v1.PodSpec`. A message that is given in several pieces is one to Kubernetes, and each piece is looked at here.
fn pod(spec: &[u8], images: &mut Vec<String>) -> Option<()> {
    let mut take = |image: &[u8]| {
        images.push(std::str::from_utf8(image).ok()?.to_owned());
        Some(())
    };
    fields(spec, &mut |number, field| match number {
        // A container, an init container: their image.
        2 | 20 => walk(field, &[2], &mut take),
        // An ephemeral container: what it has in common with others, and there the image.
        34 => walk(field, &[1, 2], &mut take),
        // A volume: its source, of the kind `image`, and there the reference.
        1 => walk(field, &[2, 30, 1], &mut take),
        _ => Some(()),
    })
}

/// Calls `end` with every field that is reached along `numbers`.
fn walk(message: &[u8], numbers: &[u32], end: &mut dyn FnMut(&[u8]) -> Option<()>) -> Option<()> {
    let Some((first, rest)) = numbers.split_first() else {
        return end(message);
    };
    fields(message, &mut |number, field| {
        if number == *first {
            walk(field, rest, end)
        } else {
            Some(())
        }
    })
}

/// Calls `each` with the number and the bytes of every field that has a length; `None` when it is no message.
fn fields(mut message: &[u8], each: &mut dyn FnMut(u32, &[u8]) -> Option<()>) -> Option<()> {
    while message.has_remaining() {
        let (number, wire_type) = decode_key(&mut message).ok()?;
        if wire_type == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
            let (field, rest) = message.split_at_checked(length)?;
            message = rest;
            each(number, field)?;
        } else {
            skip_field(wire_type, number, &mut message, DecodeContext::default()).ok()?;
        }
    }
    Some(())
}
