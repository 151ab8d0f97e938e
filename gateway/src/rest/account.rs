//! Lists that belong to the account as a whole.
//!
//! Nodes run on the machines of the deployment: an image does not choose what
//! is installed there. Programs written for Azure look for one by name before
//! they make a pool, so a few usual Linux names are listed and mean "the system
//! of this deployment's nodes".

use kiln_error::Error;
use kiln_filter::{Filter, Value as FilterValue};
use serde_json::{Value, json};

use super::call::Call;
use super::odata;
use super::reply::Reply;

struct Image {
    publisher: &'static str,
    offer: &'static str,
    sku: &'static str,
    agent: &'static str,
}

const fn image(publisher: &'static str, offer: &'static str, sku: &'static str, agent: &'static str) -> Image {
    Image { publisher, offer, sku, agent }
}

const IMAGES: [Image; 6] = [
    image("kiln", "linux", "local", "batch.node.kiln linux"),
    image("canonical", "ubuntuserver", "16.04.0-LTS", "batch.node.ubuntu 16.04"),
    image("canonical", "ubuntuserver", "18.04-lts", "batch.node.ubuntu 18.04"),
    image("canonical", "0001-com-ubuntu-server-focal", "20_04-lts", "batch.node.ubuntu 20.04"),
    image("canonical", "0001-com-ubuntu-server-jammy", "22_04-lts", "batch.node.ubuntu 22.04"),
    image("canonical", "ubuntu-24_04-lts", "server", "batch.node.ubuntu 24.04"),
];

impl Image {
    fn reference(&self) -> Value {
        json!({"publisher": self.publisher, "offer": self.offer, "sku": self.sku, "version": "latest"})
    }

    fn matches(&self, filter: &Filter) -> bool {
        filter.matches(&|name| match name {
            "osType" => Some(FilterValue::Text("linux".to_owned())),
            "verificationType" => Some(FilterValue::Text("verified".to_owned())),
            "nodeAgentSKUId" | "id" => Some(FilterValue::Text(self.agent.to_owned())),
            _ => None,
        })
    }
}

pub(super) fn list_supported_images(call: &Call) -> Result<Reply, Error> {
    call.page(super::call::MAX_RESULTS)?;
    let filter = Filter::parse(&call.filter(), &["osType", "verificationType", "nodeAgentSKUId"])?;
    let values = IMAGES.iter().filter(|image| image.matches(&filter)).map(|image| {
        json!({
            "nodeAgentSKUId": image.agent,
            "imageReference": image.reference(),
            "osType": "linux",
            "capabilities": [],
            "verificationType": "verified",
        })
    });
    Ok(odata::page(call, "supportedimages", values.collect(), ""))
}

/// The list of before 2019: images below the agent that runs on them.
pub(super) fn list_node_agent_skus(call: &Call) -> Result<Reply, Error> {
    call.page(super::call::MAX_RESULTS)?;
    let filter = Filter::parse(&call.filter(), &["osType", "id"])?;
    let values = IMAGES
        .iter()
        .filter(|image| image.matches(&filter))
        .map(|image| json!({"id": image.agent, "verifiedImageReferences": [image.reference()], "osType": "linux"}));
    Ok(odata::page(call, "nodeagentskus", values.collect(), ""))
}
