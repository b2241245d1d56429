//! Encodes `(project_id, trace_id)` as one byte string.
//!
//! Nearly all trace ids are 32 hexadecimal digits (OpenTelemetry) or UUIDs (older SDKs). Both are
//! stored as the 16 bytes they represent, which compression would not achieve (3M traces with light
//! attributes: 46.2 bytes each instead of 58.9). The first byte gives the form, so keys of
//! different forms never mix.
//!
//! ClickHouse sends a day's traces ordered bytewise by project and id, and SST files must be
//! written in key order. Keys of one form therefore sort like their ids, whatever the ids contain:
//! a zero byte in the project id becomes `00 FF`, and `00 00` ends the project id.

use faster_hex::hex_decode;

/// Number of forms. The first byte of every key is less than this.
pub const FORMS: usize = 3;
/// The id unchanged.
const PLAIN: u8 = 0;
/// 32 lowercase hexadecimal digits.
const HEXADECIMAL: u8 = 1;
/// 32 lowercase hexadecimal digits with dashes, 8-4-4-4-12.
const UUID: u8 = 2;

/// Positions of a UUID's dashes.
const DASHES: [usize; 4] = [8, 13, 18, 23];

/// Appends a trace's key to `out`.
pub fn encode(out: &mut Vec<u8>, project_id: &[u8], trace_id: &[u8]) {
    out.reserve(1 + project_id.len() + 2 + trace_id.len());
    let start = out.len();
    out.push(PLAIN);
    encode_project(out, project_id);
    match compact(trace_id) {
        None => out.extend_from_slice(trace_id),
        Some((form, bytes)) => {
            out[start] = form;
            out.extend_from_slice(&bytes);
        }
    }
}

/// Whether the key's trace id is non-empty.
pub fn has_trace_id(key: &[u8]) -> bool {
    // Only a plain id can be empty; the key then ends with the project id's terminator.
    form(key) != usize::from(PLAIN) || !ends_with_project(key)
}

fn ends_with_project(key: &[u8]) -> bool {
    let mut rest = key.get(1..).unwrap_or_default();
    while let Some(zero) = rest.iter().position(|&byte| byte == 0) {
        if rest.get(zero + 1) == Some(&0) {
            return rest.len() == zero + 2;
        }
        rest = rest.get(zero + 2..).unwrap_or_default();
    }
    false
}

/// The form of a key's id.
pub fn form(key: &[u8]) -> usize {
    key.first()
        .map_or(0, |&form| usize::from(form).min(FORMS - 1))
}

fn encode_project(out: &mut Vec<u8>, project_id: &[u8]) {
    let mut rest = project_id;
    while let Some(zero) = rest.iter().position(|&byte| byte == 0) {
        out.extend_from_slice(&rest[..zero]);
        out.extend_from_slice(&[0x00, 0xff]);
        rest = &rest[zero + 1..];
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&[0x00, 0x00]);
}

/// The form and 16 bytes of an id that has a compact form.
fn compact(id: &[u8]) -> Option<(u8, [u8; 16])> {
    if id.iter().any(u8::is_ascii_uppercase) {
        // Decoding would turn it into lowercase, a different id.
        return None;
    }
    let mut bytes = [0; 16];
    match id.len() {
        32 => {
            hex_decode(id, &mut bytes).ok()?;
            Some((HEXADECIMAL, bytes))
        }
        36 if DASHES.iter().all(|&dash| id[dash] == b'-') => {
            let mut digits = [0; 32];
            let groups = [&id[..8], &id[9..13], &id[14..18], &id[19..23], &id[24..]];
            let mut end = 0;
            for group in groups {
                digits[end..end + group.len()].copy_from_slice(group);
                end += group.len();
            }
            hex_decode(&digits, &mut bytes).ok()?;
            Some((UUID, bytes))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(project_id: &[u8], trace_id: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, project_id, trace_id);
        out
    }

    fn short_id() -> impl Strategy<Value = Vec<u8>> {
        // Few distinct bytes, so that shared prefixes and zero bytes are common.
        proptest::collection::vec(
            prop_oneof![Just(0_u8), Just(1), Just(0xfe), Just(0xff), any::<u8>()],
            0..6,
        )
    }

    /// An id that has, or nearly has, a compact form.
    fn trace_id() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            short_id(),
            "[0-9a-f]{31,33}".prop_map(String::into_bytes),
            "[0-9a-fA-F-]{32}".prop_map(String::into_bytes),
            "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-g]{12}"
                .prop_map(String::into_bytes),
            "[0-9A-F]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
                .prop_map(String::into_bytes),
            "[0-9a-f]{7}-[0-9a-f]{5}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
                .prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn keys_of_one_form_sort_as_the_pairs_do(
            a in (short_id(), trace_id()), b in (short_id(), trace_id()),
        ) {
            let keys = (key(&a.0, &a.1), key(&b.0, &b.1));
            if form(&keys.0) == form(&keys.1) {
                prop_assert_eq!(keys.0.cmp(&keys.1), a.cmp(&b));
            } else {
                prop_assert_ne!(keys.0, keys.1);
            }
        }
    }

    proptest! {
        #[test]
        fn a_key_tells_whether_the_trace_id_is_empty(project in short_id(), trace in trace_id()) {
            prop_assert_eq!(has_trace_id(&key(&project, &trace)), !trace.is_empty());
            prop_assert!(!has_trace_id(&key(&project, b"")));
        }
    }

    #[test]
    fn ids_as_sdks_make_them_take_sixteen_bytes() {
        let plain = b"0af7651916cd43dd8448eb211c80319c";
        let uuid = b"0af76519-16cd-43dd-8448-eb211c80319c";
        let lengths = [plain, &uuid[..], b"my-own-id"].map(|id| key(b"p", id).len() - 4);
        assert_eq!(lengths, [16, 16, 9]);
        assert_ne!(key(b"p", plain), key(b"p", uuid));
        let uppercase = plain.to_ascii_uppercase();
        assert_eq!(form(&key(b"p", &uppercase)), usize::from(PLAIN));
    }
}
