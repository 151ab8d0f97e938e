//! Applications and their packages.

use kiln_ids::{ApplicationId, PackageVersion};
use kiln_store::sql::{self, Connection, OptionalExtension, Row, params};
use kiln_time::Timestamp;

use super::blobs::DELETED;
use super::containers;
use super::rows::{self, Outcome, Sql};
use crate::domain::StorageError;
use crate::domain::application::{
    self, Application, ApplicationChange, ApplicationError, CONTAINER, MAX_APPLICATIONS, Package, PackageContent,
};
use crate::domain::lease::Lease;
use crate::domain::model::{Container, PublicAccess};
use crate::domain::names::Metadata;
use crate::store::{Once, Page, Stamp};

const COLUMNS: &str = "id, display_name, allow_updates, default_version, created, modified, key";

/// A row before its values are checked.
struct RawApplication(String, String, i64, Option<String>, i64, i64, String);

impl RawApplication {
    fn read(row: Row<'_>) -> Result<Self, sql::Error> {
        Ok(Self(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?, row.get(6)?))
    }

    fn into_application(self, c: &Connection, account: &str) -> Outcome<Application> {
        Ok(Application {
            packages: packages(c, account, &self.6)?,
            id: ApplicationId::parse(&self.0).map_err(rows::damaged)?,
            display_name: self.1,
            allow_updates: self.2 != 0,
            default_version: self.3.as_deref().map(stored_version).transpose()?,
            created: Timestamp::from_micros(self.4),
            modified: Timestamp::from_micros(self.5),
        })
    }
}

fn stored_version(text: &str) -> Outcome<PackageVersion> {
    PackageVersion::parse(text).map_err(rows::damaged)
}

/// As many as an application may have.
fn packages(c: &Connection, account: &str, application: &str) -> Outcome<Vec<Package>> {
    let raws: Vec<(String, Option<String>, Option<String>, i64)> = c
        .prepare_cached(
            "SELECT version, content, pending, created FROM packages
             WHERE account = ?1 AND application = ?2 ORDER BY key",
        )
        .sql()?
        .query_map(params![account, application], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
        .sql()?
        .collect::<Result<_, _>>()
        .sql()?;
    raws.into_iter()
        .map(|(version, content, pending, created)| {
            Ok(Package {
                version: stored_version(&version)?,
                content: content.as_deref().map(rows::from_json).transpose()?,
                pending,
                created: Timestamp::from_micros(created),
            })
        })
        .collect()
}

pub fn find(c: &Connection, account: &str, id: &ApplicationId) -> Outcome<Option<Application>> {
    let account = account.to_ascii_lowercase();
    let raw = c
        .prepare_cached(&format!("SELECT {COLUMNS} FROM applications WHERE account = ?1 AND key = ?2"))
        .sql()?
        .query_row(params![account, &*id.key()], RawApplication::read)
        .optional()
        .sql()?;
    raw.map(|raw| raw.into_application(c, &account)).transpose()
}

pub fn get(c: &Connection, account: &str, id: &ApplicationId) -> Outcome<Application> {
    Ok(find(c, account, id)?.ok_or_else(|| ApplicationError::NotFound(id.clone()))?)
}

pub fn list(c: &Connection, account: &str, after: &str, limit: usize) -> Outcome<Page<Application>> {
    let account = account.to_ascii_lowercase();
    let mut raws: Vec<RawApplication> = c
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM applications WHERE account = ?1 AND key > ?2 ORDER BY key LIMIT ?3"
        ))
        .sql()?
        .query_map(params![account, after, rows::integer(limit as u64 + 1)], RawApplication::read)
        .sql()?
        .collect::<Result<_, _>>()
        .sql()?;
    let more = raws.len() > limit;
    raws.truncate(limit);
    let next = if more { raws.last().map(|raw| raw.6.clone()) } else { None };
    let entries = raws.into_iter().map(|raw| raw.into_application(c, &account)).collect::<Outcome<_>>()?;
    Ok(Page { entries, next })
}

pub fn create(c: &Connection, stamp: &Stamp, new: Application) -> Outcome<Once<Application>> {
    rows::once(c, stamp, "CreateApplication", || {
        if find(c, &stamp.account, &new.id)?.is_some() {
            return Err(ApplicationError::Exists(new.id).into());
        }
        let account = stamp.account.to_ascii_lowercase();
        let count: i64 = c
            .prepare_cached("SELECT CAST(count(*) AS INTEGER) FROM applications WHERE account = ?1")
            .sql()?
            .query_row([&account], |row| row.get(0))
            .sql()?;
        if rows::length(count) >= MAX_APPLICATIONS as u64 {
            return Err(ApplicationError::TooManyApplications.into());
        }
        let application = Application { created: stamp.now, modified: stamp.now, packages: Vec::new(), ..new };
        c.prepare_cached(
            "INSERT INTO applications (account, key, id, display_name, allow_updates, default_version, created, modified)
             VALUES (?1, ?2, ?3, ?4, ?5, NULL, ?6, ?6)",
        )
        .sql()?
        .execute(params![
            account,
            &*application.id.key(),
            application.id.as_str(),
            application.display_name,
            i64::from(application.allow_updates),
            stamp.now.as_micros()
        ])
        .sql()?;
        Ok(application)
    })
}

pub fn change(c: &Connection, stamp: &Stamp, id: &ApplicationId, change: ApplicationChange) -> Outcome<Application> {
    let once = rows::once(c, stamp, "UpdateApplication", || {
        let mut application = get(c, &stamp.account, id)?;
        if let Some(name) = change.display_name {
            application.display_name = name;
        }
        if let Some(allow) = change.allow_updates {
            application.allow_updates = allow;
        }
        if let Some(version) = change.default_version {
            application.default_version = version.map(|version| application.check_default(&version)).transpose()?;
        }
        application.modified = stamp.now;
        write(c, stamp, &application)?;
        Ok(application)
    })?;
    Ok(once.answer)
}

fn write(c: &Connection, stamp: &Stamp, application: &Application) -> Outcome<()> {
    c.prepare_cached(
        "UPDATE applications SET display_name = ?3, allow_updates = ?4, default_version = ?5, modified = ?6
         WHERE account = ?1 AND key = ?2",
    )
    .sql()?
    .execute(params![
        stamp.account.to_ascii_lowercase(),
        &*application.id.key(),
        application.display_name,
        i64::from(application.allow_updates),
        application.default_version.as_ref().map(PackageVersion::as_str),
        application.modified.as_micros()
    ])
    .sql()?;
    Ok(())
}

pub fn delete(c: &Connection, stamp: &Stamp, id: &ApplicationId) -> Outcome<()> {
    rows::once(c, stamp, "DeleteApplication", || {
        let application = get(c, &stamp.account, id)?;
        if !application.packages.is_empty() {
            return Err(ApplicationError::NotEmpty(application.id).into());
        }
        c.prepare_cached("DELETE FROM applications WHERE account = ?1 AND key = ?2")
            .sql()?
            .execute(params![stamp.account.to_ascii_lowercase(), &*id.key()])
            .sql()?;
        Ok(())
    })?;
    Ok(())
}

// --- packages

pub fn create_package(
    c: &Connection,
    stamp: &Stamp,
    id: &ApplicationId,
    version: &PackageVersion,
    pending: String,
) -> Outcome<Package> {
    let once = rows::once(c, stamp, "CreatePackage", || {
        let application = get(c, &stamp.account, id)?;
        application.check_create(version)?;
        if rows::find_container(c, &stamp.account, CONTAINER)?.is_none() {
            let container = Container {
                name: CONTAINER.to_owned(),
                etag: stamp.etag.clone(),
                last_modified: stamp.now,
                metadata: Metadata::new(),
                public_access: PublicAccess::Private,
                policies: Vec::new(),
                lease: Lease::default(),
            };
            containers::insert(c, &stamp.account, &container)?;
        }
        let package = match application.package(version) {
            Ok(known) => {
                drop_blob(c, stamp, known.pending.as_deref())?;
                Package { pending: Some(pending), ..known.clone() }
            }
            Err(_) => Package { version: version.clone(), content: None, pending: Some(pending), created: stamp.now },
        };
        put_package(c, stamp, application, &package)?;
        Ok(package)
    })?;
    Ok(once.answer)
}

pub fn activate_package(
    c: &Connection,
    stamp: &Stamp,
    id: &ApplicationId,
    version: &PackageVersion,
    content: PackageContent,
) -> Outcome<Package> {
    let once = rows::once(c, stamp, "ActivatePackage", || {
        let application = get(c, &stamp.account, id)?;
        let known = application.package(version)?;
        if known.content.as_ref().is_some_and(|old| old.blob == content.blob) {
            return Ok(known.clone());
        }
        // What was looked at must be what becomes the content.
        let (container, _) = rows::container(c, &stamp.account, CONTAINER)?;
        let blob = rows::blob(c, container, CONTAINER, &content.blob)?;
        let is_same = blob.is_some_and(|(_, blob)| blob.etag == content.etag);
        if known.pending.as_ref() != Some(&content.blob) || !is_same {
            return Err(ApplicationError::Replaced.into());
        }
        drop_blob(c, stamp, known.content.as_ref().map(|old| &*old.blob))?;
        let content = Some(PackageContent { activated: stamp.now, ..content });
        let package = Package { content, pending: None, ..known.clone() };
        put_package(c, stamp, application, &package)?;
        Ok(package)
    })?;
    Ok(once.answer)
}

pub fn delete_package(c: &Connection, stamp: &Stamp, id: &ApplicationId, version: &PackageVersion) -> Outcome<()> {
    rows::once(c, stamp, "DeletePackage", || {
        let mut application = get(c, &stamp.account, id)?;
        let package = application.check_delete(version)?.clone();
        drop_blob(c, stamp, package.pending.as_deref())?;
        drop_blob(c, stamp, package.content.as_ref().map(|content| &*content.blob))?;
        c.prepare_cached("DELETE FROM packages WHERE account = ?1 AND application = ?2 AND key = ?3")
            .sql()?
            .execute(params![stamp.account.to_ascii_lowercase(), &*id.key(), &*version.key()])
            .sql()?;
        if application.default_version.as_ref() == Some(version) {
            application.default_version = None;
        }
        application.modified = stamp.now;
        write(c, stamp, &application)
    })?;
    Ok(())
}

fn put_package(c: &Connection, stamp: &Stamp, mut application: Application, package: &Package) -> Outcome<()> {
    c.prepare_cached(
        "INSERT INTO packages (account, application, key, version, content, pending, created)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (account, application, key) DO UPDATE SET content = excluded.content, pending = excluded.pending",
    )
    .sql()?
    .execute(params![
        stamp.account.to_ascii_lowercase(),
        &*application.id.key(),
        &*package.version.key(),
        package.version.as_str(),
        package.content.as_ref().map(rows::to_json).transpose()?,
        package.pending,
        package.created.as_micros()
    ])
    .sql()?;
    application.modified = stamp.now;
    write(c, stamp, &application)
}

/// Removes a blob of a package, if it was put at all, and blocks that wait for it.
fn drop_blob(c: &Connection, stamp: &Stamp, name: Option<&str>) -> Outcome<()> {
    let Some(name) = name else { return Ok(()) };
    let Some((container, _)) = rows::find_container(c, &stamp.account, CONTAINER)? else { return Ok(()) };
    let staged = rows::remove_staged(c, container, name)?;
    rows::discard(c, staged.iter().map(|extent| &extent.object), stamp.now)?;
    if let Some((id, blob)) = rows::blob(c, container, CONTAINER, name)? {
        let lost = rows::remove_blob(c, id)?;
        rows::discard(c, &lost, stamp.now)?;
        rows::announce(c, stamp, DELETED, &blob)?;
    }
    Ok(())
}

// --- what the others ask before they write

/// Blobs of packages are changed with these alone.
pub fn check_change(container: &str) -> Outcome<()> {
    if container == CONTAINER { Err(ApplicationError::Reserved.into()) } else { Ok(()) }
}

/// As [`check_change`], for a blob that is put: it may be if it was announced.
pub fn check_put(c: &Connection, account: &str, container: &str, name: &str) -> Outcome<()> {
    if container != CONTAINER {
        return Ok(());
    }
    let reserved = || StorageError::from(ApplicationError::Reserved);
    let (application, version) = application::of_blob(name).ok_or_else(reserved)?;
    let pending: Option<Option<String>> = c
        .prepare_cached("SELECT pending FROM packages WHERE account = ?1 AND application = ?2 AND key = ?3")
        .sql()?
        .query_row(params![account.to_ascii_lowercase(), application, version], |row| row.get(0))
        .optional()
        .sql()?;
    if pending.flatten().as_deref() == Some(name) { Ok(()) } else { Err(reserved()) }
}
