//! Right histories never complain; one damage is always found.

use kiln_chaos_check::{Rules, check};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::damage::Damage;
use crate::right::{history, shapes};

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn right_histories_are_right_in_any_order(shape in shapes(), seed in any::<u64>(), clock_error in 0..1000_u64) {
        let mut history = history(&shape);
        let verdict = check(&history, &Rules { clock_error });
        prop_assert!(verdict.is_kept(), "{}", serde_json::to_string_pretty(&verdict).unwrap());
        prop_assert_eq!(verdict.tasks, shape.tasks.iter().filter(|task| task.added_acknowledged).count());
        // Files of several witnesses come in any order.
        let key = |text: String| text.bytes().fold(seed, |hash, byte| hash.wrapping_mul(1_099_511_628_211) ^ u64::from(byte));
        history.clients.sort_by_key(|said| key(format!("{said:?}")));
        history.nodes.sort_by_key(|line| key(format!("{line:?}")));
        history.finals.sort_by_key(|word| key(format!("{word:?}")));
        history.events.sort_by_key(|event| key(format!("{event:?}")));
        history.watched.sort_by_key(|said| key(format!("{said:?}")));
        let verdict = check(&history, &Rules { clock_error });
        prop_assert!(verdict.is_kept(), "{}", serde_json::to_string_pretty(&verdict).unwrap());
    }

    #[test]
    fn one_damage_is_always_found(shape in shapes(), damage in prop::sample::select(&Damage::ALL[..]), pick in any::<Index>()) {
        let mut history = history(&shape);
        let expected = damage.apply(&mut history, &pick);
        prop_assume!(expected.is_some());
        let expected = expected.unwrap();
        let verdict = check(&history, &Rules::default());
        prop_assert!(verdict.count(expected) > 0, "{damage:?} is not found as {expected:?}: {}",
            serde_json::to_string_pretty(&verdict).unwrap());
        prop_assert!(!verdict.offenders(expected).is_empty());
    }
}
