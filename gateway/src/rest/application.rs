//! Applications, and whether what a pool refers to is there.
//!
//! This dialect lists applications and names their packages; making them belongs to Azure's
//! management plane, which is another service. Here it is `ApplicationService` over gRPC,
//! and `kiln app`.

use kiln_error::{Error, Kind};
use kiln_proto::common::v1::ApplicationPackageReference;
use kiln_proto::storage::v1::{
    Application, CheckPackagesRequest, GetApplicationRequest, ListApplicationsRequest, PackageState,
};
use serde_json::Value;

use super::call::{Call, MAX_RESULTS};
use super::json::Out;
use super::odata;
use super::reply::Reply;

/// Entries that storage-svc gives at once.
const LARGEST_PAGE: i32 = 200;

fn write(application: &Application) -> Value {
    // A package without a zip cannot be used, and Azure's list says nothing of states.
    let usable = application.packages.iter().filter(|package| package.state() == PackageState::Active);
    let mut out = Out::new();
    out.put("id", application.id.as_str())
        .put("displayName", application.display_name.as_str())
        .put("versions", usable.map(|package| Value::from(package.version.as_str())).collect::<Vec<_>>());
    out.done()
}

pub(super) async fn list(call: &Call) -> Result<Reply, Error> {
    let (page_size, page_token) = call.page(MAX_RESULTS)?;
    let message = ListApplicationsRequest { page_size: page_size.min(LARGEST_PAGE), page_token };
    let answer = call.backends.applications().list_applications(call.request(message)?).await?.into_inner();
    let values = answer.applications.iter().map(write).collect();
    Ok(odata::page(call, "applications", values, &answer.next_page_token))
}

pub(super) async fn get(call: &Call) -> Result<Reply, Error> {
    let id = call.argument(0);
    let message = GetApplicationRequest { id: id.clone() };
    let answer = call.backends.applications().get_application(call.request(message)?).await;
    let answer = answer.map_err(Error::from).map_err(|error| match error.kind() {
        // What cannot be an id is not there either.
        Kind::InvalidArgument => {
            Error::new(Kind::NotFound, "ApplicationNotFound", format!("there is no application {id}"))
        }
        _ => error,
    })?;
    let application = answer.into_inner().application;
    let application = application.ok_or_else(|| Error::internal("storage-svc answered without an application"))?;
    let mut value = write(&application);
    odata::select(call, &mut value);
    Ok(Reply::json("applications/@Element", value))
}

/// Refuses a pool whose nodes could not find their packages now.
pub(super) async fn check(call: &Call, packages: &[ApplicationPackageReference]) -> Result<(), Error> {
    if packages.is_empty() {
        return Ok(());
    }
    let message = CheckPackagesRequest { packages: packages.to_vec() };
    call.backends.applications().check_packages(call.request(message)?).await?;
    Ok(())
}
