//! Who may do what.
//!
//! [`Grant`] is what a caller has shown, [`Operation`] what it wants;
//! [`Grant::check`] is the table of both.

use super::StorageError;
use super::model::PublicAccess;
use super::sas::{SasGrant, SasScope};

/// Every operation of the data plane, also the label of metrics and spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // Azure's names, but for ResolvePackage.
pub enum Operation {
    Preflight,
    ListContainers,
    GetServiceProperties,
    SetServiceProperties,
    GetAccountInformation,
    CreateContainer,
    GetContainerProperties,
    GetContainerMetadata,
    SetContainerMetadata,
    GetContainerAcl,
    SetContainerAcl,
    DeleteContainer,
    LeaseContainer,
    BreakContainerLease,
    ListBlobs,
    ResolvePackage,
    PutBlob,
    CopyBlob,
    AbortCopy,
    PutBlobFromUrl,
    PutBlockFromUrl,
    PutBlock,
    PutBlockList,
    GetBlockList,
    GetBlob,
    HeadBlob,
    GetBlobMetadata,
    SetBlobMetadata,
    SetBlobProperties,
    DeleteBlob,
    LeaseBlob,
    BreakBlobLease,
    SnapshotBlob,
    SetBlobTier,
    AppendBlock,
}

/// What kind of thing an operation is about, in the letters of `srt`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resource {
    Service,
    Container,
    Object,
}

/// What a caller has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grant {
    /// An account key: everything.
    Owner,
    /// A shared access signature.
    Sas(SasGrant),
    /// A node of the account: reads what its tasks need.
    Node,
    /// Nothing.
    Anonymous,
}

/// How far a permission goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// Without limits.
    Fully,
    /// Only if the blob does not exist yet (permission `c`).
    OnlyNew,
}

impl Operation {
    /// Name for metrics, spans and logs.
    pub fn name(self) -> &'static str {
        use Operation as O;
        match self {
            O::Preflight => "Preflight",
            O::ListContainers => "ListContainers",
            O::GetServiceProperties => "GetServiceProperties",
            O::SetServiceProperties => "SetServiceProperties",
            O::GetAccountInformation => "GetAccountInformation",
            O::CreateContainer => "CreateContainer",
            O::GetContainerProperties => "GetContainerProperties",
            O::GetContainerMetadata => "GetContainerMetadata",
            O::SetContainerMetadata => "SetContainerMetadata",
            O::GetContainerAcl => "GetContainerAcl",
            O::SetContainerAcl => "SetContainerAcl",
            O::DeleteContainer => "DeleteContainer",
            O::LeaseContainer => "LeaseContainer",
            O::BreakContainerLease => "BreakContainerLease",
            O::ListBlobs => "ListBlobs",
            O::ResolvePackage => "ResolvePackage",
            O::PutBlob => "PutBlob",
            O::CopyBlob => "CopyBlob",
            O::AbortCopy => "AbortCopy",
            O::PutBlobFromUrl => "PutBlobFromUrl",
            O::PutBlockFromUrl => "PutBlockFromUrl",
            O::PutBlock => "PutBlock",
            O::PutBlockList => "PutBlockList",
            O::GetBlockList => "GetBlockList",
            O::GetBlob => "GetBlob",
            O::HeadBlob => "HeadBlob",
            O::GetBlobMetadata => "GetBlobMetadata",
            O::SetBlobMetadata => "SetBlobMetadata",
            O::SetBlobProperties => "SetBlobProperties",
            O::DeleteBlob => "DeleteBlob",
            O::LeaseBlob => "LeaseBlob",
            O::BreakBlobLease => "BreakBlobLease",
            O::SnapshotBlob => "SnapshotBlob",
            O::SetBlobTier => "SetBlobTier",
            O::AppendBlock => "AppendBlock",
        }
    }

    fn resource(self) -> Resource {
        use Operation as O;
        match self {
            O::Preflight
            | O::ListContainers
            | O::GetServiceProperties
            | O::SetServiceProperties
            | O::GetAccountInformation => Resource::Service,
            O::CreateContainer
            | O::GetContainerProperties
            | O::GetContainerMetadata
            | O::SetContainerMetadata
            | O::GetContainerAcl
            | O::SetContainerAcl
            | O::DeleteContainer
            | O::LeaseContainer
            | O::BreakContainerLease
            | O::ListBlobs
            | O::ResolvePackage => Resource::Container,
            O::PutBlob
            | O::CopyBlob
            | O::AbortCopy
            | O::PutBlobFromUrl
            | O::PutBlockFromUrl
            | O::PutBlock
            | O::PutBlockList
            | O::GetBlockList
            | O::GetBlob
            | O::HeadBlob
            | O::GetBlobMetadata
            | O::SetBlobMetadata
            | O::SetBlobProperties
            | O::DeleteBlob
            | O::LeaseBlob
            | O::BreakBlobLease
            | O::SnapshotBlob
            | O::SetBlobTier
            | O::AppendBlock => Resource::Object,
        }
    }

    /// Any one of these letters allows it; empty: no token does.
    fn letters(self) -> &'static str {
        use Operation as O;
        match self {
            O::ListContainers | O::ListBlobs => "l",
            O::GetServiceProperties => "r",
            O::SetServiceProperties => "w",
            O::GetAccountInformation => "racwdxyltfmei",
            O::CreateContainer => "cw",
            O::GetContainerProperties | O::GetContainerMetadata => "r",
            O::SetContainerMetadata | O::LeaseContainer | O::LeaseBlob => "w",
            O::BreakContainerLease | O::BreakBlobLease => "wd",
            O::GetContainerAcl | O::SetContainerAcl | O::ResolvePackage => "",
            // It is answered before anybody is asked who they are.
            O::Preflight => "",
            O::DeleteContainer | O::DeleteBlob => "d",
            O::PutBlob | O::CopyBlob | O::PutBlock | O::PutBlockList => "w",
            O::AbortCopy | O::PutBlobFromUrl | O::PutBlockFromUrl => "w",
            O::SetBlobMetadata | O::SetBlobProperties | O::SetBlobTier => "w",
            O::SnapshotBlob => "cw",
            O::AppendBlock => "a",
            O::GetBlockList | O::GetBlob | O::HeadBlob | O::GetBlobMetadata => "r",
        }
    }

    /// The parameter `snapshot` means something to it.
    pub fn takes_snapshot(self) -> bool {
        self.resource() != Resource::Object || self.reads_blob() || matches!(self, Self::DeleteBlob | Self::SetBlobTier)
    }

    /// `c` is enough to make a blob that does not exist.
    fn creates(self) -> bool {
        matches!(
            self,
            Self::PutBlob
                | Self::CopyBlob
                | Self::PutBlobFromUrl
                | Self::PutBlockFromUrl
                | Self::PutBlock
                | Self::PutBlockList
        )
    }

    fn reads_blob(self) -> bool {
        matches!(self, Self::GetBlob | Self::HeadBlob | Self::GetBlobMetadata | Self::GetBlockList)
    }

    fn reads_container(self) -> bool {
        matches!(
            self,
            Self::ListBlobs | Self::GetContainerProperties | Self::GetContainerMetadata | Self::ResolvePackage
        )
    }
}

impl Grant {
    /// Whether the caller may do `operation`; `public` is the public access of
    /// the container it is about (private if there is none).
    ///
    /// # Errors
    /// Which part of the permission is missing.
    pub fn check(&self, operation: Operation, public: PublicAccess) -> Result<Allowed, StorageError> {
        match self {
            Self::Owner => Ok(Allowed::Fully),
            Self::Node if operation.reads_blob() || operation.reads_container() => Ok(Allowed::Fully),
            Self::Node => Err(StorageError::AuthorizationPermissionMismatch),
            Self::Sas(sas) => check_sas(sas, operation),
            Self::Anonymous => match public {
                PublicAccess::Blob | PublicAccess::Container if operation.reads_blob() => Ok(Allowed::Fully),
                PublicAccess::Container if operation.reads_container() => Ok(Allowed::Fully),
                _ => Err(StorageError::NoAuthenticationInformation),
            },
        }
    }
}

fn check_sas(sas: &SasGrant, operation: Operation) -> Result<Allowed, StorageError> {
    match &sas.scope {
        SasScope::Account { services, resource_types } => {
            if !services.contains('b') {
                return Err(StorageError::AuthorizationServiceMismatch);
            }
            let letter = match operation.resource() {
                Resource::Service => 's',
                Resource::Container => 'c',
                Resource::Object => 'o',
            };
            // Information about the account is open to tokens of any type.
            if !resource_types.contains(letter) && operation != Operation::GetAccountInformation {
                return Err(StorageError::AuthorizationResourceTypeMismatch);
            }
        }
        SasScope::Container if operation == Operation::ListBlobs => {}
        SasScope::Container | SasScope::Blob | SasScope::Snapshot => match operation.resource() {
            Resource::Object => {}
            Resource::Container | Resource::Service => return Err(StorageError::AuthorizationFailure),
        },
    }
    let has = |letters: &str| letters.chars().any(|letter| sas.permissions.contains(letter));
    // Tokens of accounts that may write may also add.
    let adds = operation == Operation::AppendBlock && matches!(sas.scope, SasScope::Account { .. }) && has("w");
    if has(operation.letters()) || adds {
        Ok(Allowed::Fully)
    } else if operation.creates() && has("c") {
        Ok(Allowed::OnlyNew)
    } else {
        Err(StorageError::AuthorizationPermissionMismatch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::sas::Overrides;
    use Operation as O;

    fn sas(scope: SasScope, permissions: &str) -> Grant {
        Grant::Sas(SasGrant { permissions: permissions.into(), scope, overrides: Overrides::default() })
    }

    fn code(result: Result<Allowed, StorageError>) -> &'static str {
        match result {
            Ok(Allowed::Fully) => "yes",
            Ok(Allowed::OnlyNew) => "new",
            Err(error) => error.code(),
        }
    }

    #[test]
    fn service_tokens() {
        let no = "AuthorizationPermissionMismatch";
        for (permissions, operation, blob, container) in [
            ("r", O::GetBlob, "yes", "yes"),
            ("r", O::GetBlockList, "yes", "yes"),
            ("r", O::PutBlob, no, no),
            ("w", O::PutBlob, "yes", "yes"),
            ("c", O::PutBlob, "new", "new"),
            ("c", O::SetBlobMetadata, no, no),
            ("cw", O::PutBlockList, "yes", "yes"),
            ("w", O::GetBlob, no, no),
            ("d", O::DeleteBlob, "yes", "yes"),
            ("rw", O::DeleteBlob, no, no),
            ("c", O::CopyBlob, "new", "new"),
            ("c", O::PutBlobFromUrl, "new", "new"),
            ("c", O::PutBlockFromUrl, "new", "new"),
            ("w", O::PutBlobFromUrl, "yes", "yes"),
            ("r", O::PutBlobFromUrl, no, no),
            ("w", O::PutBlockFromUrl, "yes", "yes"),
            ("w", O::AbortCopy, "yes", "yes"),
            ("c", O::AbortCopy, no, no),
            ("w", O::LeaseBlob, "yes", "yes"),
            ("rcd", O::LeaseBlob, no, no),
            ("w", O::BreakBlobLease, "yes", "yes"),
            ("d", O::BreakBlobLease, "yes", "yes"),
            ("rc", O::BreakBlobLease, no, no),
            ("racwdl", O::LeaseContainer, "AuthorizationFailure", "AuthorizationFailure"),
            ("racwdl", O::BreakContainerLease, "AuthorizationFailure", "AuthorizationFailure"),
            ("c", O::SnapshotBlob, "yes", "yes"),
            ("w", O::SnapshotBlob, "yes", "yes"),
            ("r", O::SnapshotBlob, no, no),
            ("a", O::AppendBlock, "yes", "yes"),
            ("wc", O::AppendBlock, no, no),
            ("w", O::SetBlobTier, "yes", "yes"),
            ("c", O::SetBlobTier, no, no),
            ("l", O::ListBlobs, "AuthorizationFailure", "yes"),
            ("r", O::ListBlobs, "AuthorizationFailure", no),
            ("racwdl", O::CreateContainer, "AuthorizationFailure", "AuthorizationFailure"),
            ("racwdl", O::DeleteContainer, "AuthorizationFailure", "AuthorizationFailure"),
            ("racwdl", O::SetContainerAcl, "AuthorizationFailure", "AuthorizationFailure"),
            ("racwdl", O::ResolvePackage, "AuthorizationFailure", "AuthorizationFailure"),
            ("racwdl", O::ListContainers, "AuthorizationFailure", "AuthorizationFailure"),
        ] {
            let check = |scope| code(sas(scope, permissions).check(operation, PublicAccess::Private));
            assert_eq!(check(SasScope::Blob), blob, "blob {permissions} {operation:?}");
            assert_eq!(check(SasScope::Container), container, "container {permissions} {operation:?}");
        }
    }

    #[test]
    fn account_tokens() {
        for (services, types, permissions, operation, expected) in [
            ("b", "sco", "rwl", O::ListContainers, "yes"),
            ("b", "sco", "c", O::CreateContainer, "yes"),
            ("b", "o", "c", O::PutBlob, "new"),
            ("b", "c", "w", O::LeaseContainer, "yes"),
            ("b", "c", "d", O::LeaseContainer, "AuthorizationPermissionMismatch"),
            ("b", "c", "d", O::BreakContainerLease, "yes"),
            ("b", "c", "w", O::LeaseBlob, "AuthorizationResourceTypeMismatch"),
            ("b", "c", "w", O::PutBlob, "AuthorizationResourceTypeMismatch"),
            ("q", "sco", "rwl", O::GetBlob, "AuthorizationServiceMismatch"),
            ("b", "sco", "w", O::GetBlob, "AuthorizationPermissionMismatch"),
            ("b", "sco", "racwdl", O::GetContainerAcl, "AuthorizationPermissionMismatch"),
            ("b", "o", "r", O::GetAccountInformation, "yes"),
            ("b", "o", "w", O::AppendBlock, "yes"),
            ("b", "o", "a", O::AppendBlock, "yes"),
            ("b", "o", "c", O::AppendBlock, "AuthorizationPermissionMismatch"),
        ] {
            let scope = SasScope::Account { services: services.into(), resource_types: types.into() };
            let got = code(sas(scope, permissions).check(operation, PublicAccess::Private));
            assert_eq!(got, expected, "{services} {types} {permissions} {operation:?}");
        }
    }

    #[test]
    fn anonymous_callers_and_nodes() {
        let no = "NoAuthenticationInformation";
        for (public, operation, expected) in [
            (PublicAccess::Private, O::GetBlob, no),
            (PublicAccess::Blob, O::GetBlob, "yes"),
            (PublicAccess::Blob, O::ListBlobs, no),
            (PublicAccess::Container, O::ListBlobs, "yes"),
            (PublicAccess::Container, O::PutBlob, no),
            (PublicAccess::Container, O::GetContainerAcl, no),
        ] {
            assert_eq!(code(Grant::Anonymous.check(operation, public)), expected, "{public:?} {operation:?}");
        }
        assert_eq!(code(Grant::Node.check(O::GetBlob, PublicAccess::Private)), "yes");
        assert_eq!(code(Grant::Node.check(O::ListBlobs, PublicAccess::Private)), "yes");
        assert_eq!(code(Grant::Node.check(O::ResolvePackage, PublicAccess::Private)), "yes");
        for operation in [O::PutBlob, O::DeleteBlob, O::ListContainers, O::CreateContainer] {
            assert_eq!(code(Grant::Node.check(operation, PublicAccess::Private)), "AuthorizationPermissionMismatch");
        }
    }
}
