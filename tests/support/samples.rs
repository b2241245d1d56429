//! What the program keeps in files, for those who damage it.

use std::collections::BTreeMap;

use events_backfill::internals::{
    Boundary, Checkpoint, RunIdentity, Segment, SegmentCounts, Source, TraceRecord,
};
use serde_bytes::{ByteBuf, Bytes};

/// A run that has loaded so many days of traces and written as many segments, all that it has.
pub fn checkpoint(segments: u16) -> Checkpoint {
    let facts = BTreeMap::from([("the server".to_owned(), "http://a".to_owned())]);
    let mut checkpoint = Checkpoint::begin(RunIdentity::of(facts), "run".to_owned(), 1);
    let boundary = |day| Boundary {
        project_id: ByteBuf::from("project"),
        observation_type: ByteBuf::from("SPAN"),
        day,
        id: Some(ByteBuf::from("observation")),
    };
    let ranges = (0..segments).map(|number| Segment {
        number: number.into(),
        source: Source::Observations,
        from: Some(boundary(19_875)),
        to: Some(boundary(19_876)),
        rows: 250_000,
    });
    checkpoint.segments = Some(ranges.collect());
    for number in 0..segments {
        checkpoint.days.insert(19_875 + number, (12, 10));
        let counts = SegmentCounts::default();
        checkpoint.done.insert(number.into(), counts);
    }
    checkpoint.superseded = Some(1);
    checkpoint
}

/// A trace that has something of everything.
pub fn full_record() -> TraceRecord<'static> {
    TraceRecord {
        event_ts: 1_717_200_000_000_000,
        is_deleted: false,
        day: 19_875,
        public: true,
        bookmarked: false,
        texts: std::array::from_fn(|place| Bytes::new(&b"a text"[place..])),
        tags: vec![Bytes::new(b"one"), Bytes::new(b"two")],
        metadata: vec![(Bytes::new(b"key"), Bytes::new(b"value")); 3],
    }
}
