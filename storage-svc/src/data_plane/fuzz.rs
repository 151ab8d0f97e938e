//! Documents, paths and markers of any kind: never a panic, and what was written
//! is read again.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{call, marker, xml};
use crate::domain::model::{BlockSource, MAX_POLICIES, StoredPolicy};
use crate::store::BlobPosition;
use kiln_time::Timestamp;

/// Texts that XML can hold as they are.
fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9<>&\"'=+/ü日-]{1,30}"
}

/// Pieces of documents in any order.
fn broken() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "<?xml version=\"1.0\" encoding=\"utf-8\"?>",
            "<BlockList>",
            "</BlockList>",
            "<Latest>",
            "</Latest>",
            "<Committed>",
            "</Committed>",
            "<SignedIdentifiers>",
            "</SignedIdentifiers>",
            "<SignedIdentifier>",
            "<Id>",
            "</Id>",
            "<AccessPolicy/>",
            "<![CDATA[",
            "]]>",
            "<!--",
            "-->",
            "<!DOCTYPE a [<!ENTITY b \"c\">]>",
            "&b;",
            "&#0;",
            "&#x110000;",
            "\u{feff}",
            "<a b='",
        ])
        .prop_map(str::to_owned),
        any::<String>(),
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_document_is_read_or_refused(bytes in vec(any::<u8>(), 0..200), text in broken()) {
        for body in [bytes.as_slice(), text.as_bytes()] {
            for error in [xml::parse_block_list(body).err(), xml::parse_acl(body).err()].into_iter().flatten() {
                prop_assert_eq!(error.status(), 400);
            }
        }
    }

    #[test]
    fn block_lists_are_read_as_they_were_written(blocks in vec((0_usize..3, "[A-Za-z0-9+/]{4,88}={0,2}"), 0..50)) {
        let names = ["Committed", "Uncommitted", "Latest"];
        let sources = [BlockSource::Committed, BlockSource::Uncommitted, BlockSource::Latest];
        let items: String = blocks.iter().map(|(at, id)| format!("<{0}>{id}</{0}>\n", names[*at])).collect();
        let body = format!("<?xml version='1.0' encoding='utf-8'?><BlockList>{items}</BlockList>");
        let expected: Vec<_> = blocks.into_iter().map(|(at, id)| (sources[at], id)).collect();
        prop_assert_eq!(xml::parse_block_list(body.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn policies_are_read_as_they_were_written(
        given in vec((text(), prop::option::of(text()), prop::option::of(text()), prop::option::of(text())), 0..=MAX_POLICIES),
    ) {
        let mut policies: Vec<StoredPolicy> = Vec::new();
        for (id, start, expiry, permission) in given {
            if policies.iter().all(|known| known.id != id) {
                policies.push(StoredPolicy { id, start, expiry, permission });
            }
        }
        prop_assert_eq!(xml::parse_acl(xml::acl(&policies).as_bytes()).unwrap(), policies);
    }

    #[test]
    fn any_path_leads_somewhere_or_is_refused(path in any::<String>(), host in prop::option::of("[a-z]{1,8}")) {
        if let Ok(place) = call::place(&path, host.as_deref()) {
            prop_assert!(!place.account.is_empty());
            prop_assert!(!place.blob.contains('\\'));
        }
        let _ = call::host_label(&path, "own.example.org");
    }

    #[test]
    fn markers_come_back_or_are_refused(name in any::<String>(), at in prop::option::of(any::<i64>()), other in any::<String>()) {
        let position = BlobPosition { name, snapshot: at.map(Timestamp::from_micros) };
        prop_assert_eq!(marker::read(&marker::write(&position)), Some(Some(position)));
        let _ = marker::read(&other);
    }
}
