//! What every [`AccountStore`] does.

use kiln_auth::SecretKey;
use kiln_ids::AccountName;

use super::AccountStore;
use crate::domain::Account;

fn account(name: &str) -> Account {
    let key = || SecretKey::generate().to_base64();
    Account::new(name, &key(), &key(), "").unwrap()
}

/// Runs the suite; `open` opens the same, at first empty, store each time.
pub async fn accounts<S, F, Fut>(open: F)
where
    S: AccountStore,
    F: Fn() -> Fut,
    Fut: Future<Output = S>,
{
    let store = open().await;
    let name = AccountName::parse("Demo").unwrap();
    assert_eq!(store.get(&name).await.unwrap(), None);

    let first = account("Demo");
    store.put(&first).await.unwrap();
    store.put(&first).await.unwrap();
    assert_eq!(store.get(&AccountName::parse("dEMO").unwrap()).await.unwrap(), Some(first.clone()));
    let other = account("other");
    store.put(&other).await.unwrap();

    // Another spelling is the same account; all of it is replaced.
    let second = account("demo");
    store.put(&second).await.unwrap();
    drop(store);

    let store = open().await;
    let found = store.get(&name).await.unwrap().unwrap();
    assert_eq!(found, second);
    assert_ne!(found.key1, first.key1);
    assert_eq!(store.get(&other.name).await.unwrap(), Some(other));
}
