//! Keys: `(project_id, trace_id)` as one byte string that sorts as the pair does.
//!
//! ClickHouse sends a day's traces ordered by project and id, bytewise, and SST
//! files must be written in key order, so the two orders have to agree for ids
//! of any form, zero bytes included. A zero byte in the project id is written
//! as `00 FF`, and the project id ends with `00 00`.

/// Appends the key of a trace to `out`.
pub fn encode(out: &mut Vec<u8>, project_id: &[u8], trace_id: &[u8]) {
    out.reserve(project_id.len() + trace_id.len() + 2);
    let mut rest = project_id;
    while let Some(zero) = rest.iter().position(|&byte| byte == 0) {
        out.extend_from_slice(&rest[..zero]);
        out.extend_from_slice(&[0x00, 0xff]);
        rest = &rest[zero + 1..];
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&[0x00, 0x00]);
    out.extend_from_slice(trace_id);
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

    fn id() -> impl Strategy<Value = Vec<u8>> {
        // Few distinct bytes, so that prefixes and zero bytes meet often.
        proptest::collection::vec(
            prop_oneof![Just(0_u8), Just(1), Just(0xfe), Just(0xff), any::<u8>()],
            0..6,
        )
    }

    proptest! {
        #[test]
        fn keys_sort_as_the_pairs_do(a in (id(), id()), b in (id(), id())) {
            prop_assert_eq!(key(&a.0, &a.1).cmp(&key(&b.0, &b.1)), a.cmp(&b));
        }
    }
}
