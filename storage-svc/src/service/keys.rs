//! Whether the keys of the key file are those that the bytes were encrypted with,
//! found out before anything is served.

use anyhow::{Context, bail};

use crate::objects::sealing::Keyring;
use crate::store::Catalogue;

/// Compares `keyring` with what was used so far, and remembers its keys.
///
/// # Errors
/// A key has changed under its id, or one is missing that bytes still need.
pub async fn check(catalogue: &dyn Catalogue, keyring: Option<&Keyring>) -> anyhow::Result<()> {
    for id in keyring.iter().flat_map(|keyring| keyring.ids()) {
        let proof = keyring.context("a keyring")?.proof(id)?;
        catalogue.add_encryption_key(id, &proof).await?;
    }
    for (id, proof) in catalogue.encryption_keys().await? {
        let given = keyring.filter(|keyring| keyring.ids().any(|given| given == id));
        match given {
            Some(keyring) if keyring.proof(&id)? == proof => {}
            Some(_) => bail!(
                "the key {id} in encryption_key_file is not the one that blobs were encrypted with under this id: put \
                 the earlier one back, and give a new one an id of its own"
            ),
            None if catalogue.key_in_use(&id).await? => bail!(
                "blobs are encrypted with the key {id}, which encryption_key_file does not have: add its line (after the \
                 first, if another key is to be used for new blobs)"
            ),
            None => {
                tracing::info!(key = id, "a key that encrypts nothing any more is forgotten");
                catalogue.forget_encryption_key(&id).await?;
            }
        }
    }
    Ok(())
}
