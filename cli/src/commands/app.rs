//! `kiln app ...`: applications and their packages.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Subcommand;
use kiln_client::Client;
use kiln_proto::common::v1::ApplicationPackageReference;
use kiln_proto::storage::v1::upload_package_request::Part;
use kiln_proto::storage::v1::{
    ActivatePackageRequest, Application, CreateApplicationRequest, CreatePackageRequest, DeleteApplicationRequest,
    DeletePackageRequest, GetApplicationRequest, ListApplicationsRequest, Package, PackageState,
    UpdateApplicationRequest, UploadPackageHeader, UploadPackageRequest,
};

use super::{pages, present};
use crate::failure::Outcome;
use crate::output::{self, Format, text};
use crate::transfer::{request_id, retry, send_all};

const MESSAGE: &str = "kiln.storage.v1.Application";
const PACKAGE: &str = "kiln.storage.v1.Package";

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// Make an application
    Create {
        /// Its id: 1 to 64 of A-Z a-z 0-9 - _
        id: String,
        /// Name for people
        #[arg(long, default_value = "", hide_default_value = true)]
        display_name: String,
        /// Its packages are neither replaced nor deleted
        #[arg(long)]
        no_updates: bool,
    },
    /// Upload a zip as a version of an application, and activate it
    Upload {
        /// The application; it is made if there is none
        id: String,
        /// The version: 1 to 64 of A-Z a-z 0-9 - _ .
        version: String,
        /// The zip
        file: PathBuf,
        /// Make it the default version
        #[arg(long)]
        default: bool,
    },
    /// Print a URL to which somebody without the key may put the zip of a version
    Url {
        /// The application
        id: String,
        /// The version
        version: String,
    },
    /// Take the zip that was put to the URL of a version
    Activate {
        /// The application
        id: String,
        /// The version
        version: String,
    },
    /// List applications
    Ls {
        /// At most this many
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show one application and its versions
    Show {
        /// Its id
        id: String,
    },
    /// Change an application
    Set {
        /// Its id
        id: String,
        /// Version that is used where none is named
        #[arg(long, value_name = "VERSION")]
        default_version: Option<String>,
        /// Use none where none is named
        #[arg(long, conflicts_with = "default_version")]
        no_default_version: bool,
        /// Name for people
        #[arg(long)]
        display_name: Option<String>,
        /// Whether packages may be replaced and deleted
        #[arg(long, value_name = "true|false")]
        allow_updates: Option<bool>,
    },
    /// Delete a version, or an application without versions
    Rm {
        /// The application
        id: String,
        /// The version; without it the application itself
        version: Option<String>,
        /// With all its versions
        #[arg(long, conflicts_with = "version")]
        all: bool,
    },
}

/// `APP` or `APP:VERSION`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_package(given: &str) -> Result<ApplicationPackageReference, String> {
    let (application, version) = given.split_once(':').map_or((given, None), |(id, version)| (id, Some(version)));
    kiln_ids::ApplicationId::parse(application).map_err(|error| error.to_string())?;
    if let Some(version) = version {
        kiln_ids::PackageVersion::parse(version).map_err(|error| error.to_string())?;
    }
    Ok(ApplicationPackageReference {
        application_id: application.to_owned(),
        version: version.unwrap_or_default().to_owned(),
    })
}

/// What [`parse_package`] reads.
pub fn package_text(package: &ApplicationPackageReference) -> String {
    match package.version.as_str() {
        "" => package.application_id.clone(),
        version => format!("{}:{version}", package.application_id),
    }
}

/// Carries out a subcommand.
///
/// # Errors
/// What the service said, or if the zip cannot be read.
pub async fn run(client: &Client, format: Format, command: AppCommand) -> Outcome {
    let mut applications = client.applications();
    match command {
        AppCommand::Create { id, display_name, no_updates } => {
            let request = CreateApplicationRequest {
                request_id: request_id(),
                id,
                display_name,
                allow_updates: Some(!no_updates),
            };
            let made = applications.create_application(request).await?.into_inner().application;
            output::show(format, MESSAGE, &present(made, "application")?, rows)
        }
        AppCommand::Upload { id, version, file, default } => {
            let package = upload(client, &id, &version, &file).await?;
            if default {
                let request = UpdateApplicationRequest {
                    request_id: request_id(),
                    id: id.clone(),
                    default_version: Some(version.clone()),
                    ..UpdateApplicationRequest::default()
                };
                applications.update_application(request).await?;
            }
            output::done(format, || {
                let words = if default { ", the default version" } else { "" };
                format!("{id}:{version} is active: {}{words}", text::bytes(package.content_length))
            });
            Ok(())
        }
        AppCommand::Url { id, version } => {
            let request = CreatePackageRequest { request_id: request_id(), application_id: id, version };
            let made = applications.create_package(request).await?.into_inner();
            output::show(format, "kiln.storage.v1.CreatePackageResponse", &made, |made| {
                vec![("url", made.upload_url.clone()), ("expires", text::time(made.upload_url_expires.as_ref()))]
            })
        }
        AppCommand::Activate { id, version } => {
            let request = ActivatePackageRequest { request_id: request_id(), application_id: id, version };
            let package = applications.activate_package(request).await?.into_inner().package;
            output::show(format, PACKAGE, &present(package, "package")?, |package| {
                vec![
                    ("version", package.version.clone()),
                    ("state", state(package)),
                    ("size", text::bytes(package.content_length)),
                    ("activated", text::time(package.last_activation_time.as_ref())),
                ]
            })
        }
        AppCommand::Ls { limit } => {
            let list = pages(limit, |page_size, page_token| {
                let mut applications = client.applications();
                let request = ListApplicationsRequest { page_size: page_size.min(200), page_token };
                async move {
                    let page = applications.list_applications(request).await?.into_inner();
                    Ok((page.applications, page.next_page_token))
                }
            })
            .await?;
            output::list(format, MESSAGE, &list, &["id", "default", "versions", "name"], |application| {
                vec![
                    application.id.clone(),
                    application.default_version.clone(),
                    versions(application),
                    application.display_name.clone(),
                ]
            })
        }
        AppCommand::Show { id } => {
            let found = applications.get_application(GetApplicationRequest { id }).await?.into_inner().application;
            output::show(format, MESSAGE, &present(found, "application")?, rows)
        }
        AppCommand::Set { id, default_version, no_default_version, display_name, allow_updates } => {
            let request = UpdateApplicationRequest {
                request_id: request_id(),
                id,
                display_name,
                allow_updates,
                default_version: if no_default_version { Some(String::new()) } else { default_version },
            };
            let changed = applications.update_application(request).await?.into_inner().application;
            output::show(format, MESSAGE, &present(changed, "application")?, rows)
        }
        AppCommand::Rm { id, version: Some(version), .. } => {
            delete_package(client, &id, &version).await?;
            output::done(format, || format!("{id}:{version} is deleted"));
            Ok(())
        }
        AppCommand::Rm { id, version: None, all } => {
            if all {
                let request = GetApplicationRequest { id: id.clone() };
                let found = applications.get_application(request).await?.into_inner().application;
                for package in present(found, "application")?.packages {
                    delete_package(client, &id, &package.version).await?;
                }
            }
            let request = DeleteApplicationRequest { request_id: request_id(), id: id.clone() };
            applications.delete_application(request).await?;
            output::done(format, || format!("application {id} is deleted"));
            Ok(())
        }
    }
}

async fn delete_package(client: &Client, id: &str, version: &str) -> Outcome {
    let request =
        DeletePackageRequest { request_id: request_id(), application_id: id.to_owned(), version: version.to_owned() };
    client.applications().delete_package(request).await?;
    Ok(())
}

/// Uploads and activates; the same call is repeated if it breaks off.
async fn upload(client: &Client, id: &str, version: &str, file: &Path) -> Outcome<Package> {
    if !exists(client, id).await? {
        let request = CreateApplicationRequest {
            request_id: request_id(),
            id: id.to_owned(),
            ..CreateApplicationRequest::default()
        };
        client.applications().create_application(request).await?;
    }
    let header = UploadPackageHeader {
        request_id: request_id(),
        application_id: id.to_owned(),
        version: version.to_owned(),
        content_md5: Vec::new(),
    };
    let part = |part| UploadPackageRequest { part: Some(part) };
    retry(|| async {
        let opened = tokio::fs::File::open(file).await.with_context(|| file.display().to_string())?;
        let mut applications = client.applications();
        let call = |messages| async move { applications.upload_package(messages).await };
        let what = file.display().to_string();
        let header = part(Part::Header(header.clone()));
        let answer = send_all(&what, opened, header, |bytes| part(Part::Data(bytes)), &|_| {}, call).await?;
        present(answer.into_inner().package, "package")
    })
    .await
}

async fn exists(client: &Client, id: &str) -> Outcome<bool> {
    match client.applications().get_application(GetApplicationRequest { id: id.to_owned() }).await {
        Ok(_) => Ok(true),
        Err(status) => match kiln_error::Error::from(status) {
            error if error.reason() == "ApplicationNotFound" => Ok(false),
            error => Err(error.into()),
        },
    }
}

fn state(package: &Package) -> String {
    text::word(package.state().as_str_name(), "PACKAGE_STATE")
}

/// Versions that are there, with a word about those that are not ready.
fn versions(application: &Application) -> String {
    let shown = application.packages.iter().map(|package| match package.state() {
        PackageState::Active => package.version.clone(),
        PackageState::Pending | PackageState::Unspecified => format!("{} ({})", package.version, state(package)),
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn rows(application: &Application) -> Vec<(&'static str, String)> {
    vec![
        ("id", application.id.clone()),
        ("name", application.display_name.clone()),
        ("default version", application.default_version.clone()),
        ("versions", versions(application)),
        ("updates", if application.allow_updates { "allowed" } else { "not allowed" }.to_owned()),
        ("created", text::time(application.creation_time.as_ref())),
        ("modified", text::time(application.last_modified.as_ref())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_named_with_and_without_a_version() {
        for given in ["tool", "tool:1.0-RC", "My_Tool:v2"] {
            assert_eq!(package_text(&parse_package(given).unwrap()), given);
        }
        for bad in ["", ":1", "tool:", "a/b", "tool:..", "tool:1:2"] {
            assert!(parse_package(bad).is_err(), "{bad}");
        }
    }
}
