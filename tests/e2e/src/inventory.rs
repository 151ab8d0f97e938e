//! What an account has.

use std::collections::BTreeSet;

use kiln_client::Client;
use kiln_proto::job::v1::{ListJobsRequest, ListTasksRequest};
use kiln_proto::pool::v1::ListPoolsRequest;
use kiln_proto::storage::v1::{ListBlobsRequest, ListContainersRequest};

/// Names of all things of the account, such as `pool p`, `job j`, `task j/t`, `container c`, `blob c/b`.
pub async fn inventory(client: &Client) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let pools = client.pools().list_pools(ListPoolsRequest::default()).await.unwrap().into_inner().pools;
    names.extend(pools.iter().map(|pool| format!("pool {}", pool.id)));
    let jobs = client.jobs().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs;
    for job in jobs {
        let request = ListTasksRequest { job_id: job.id.clone(), ..Default::default() };
        let tasks = client.jobs().list_tasks(request).await.unwrap().into_inner().tasks;
        names.extend(tasks.iter().map(|task| format!("task {}/{}", job.id, task.spec.as_ref().unwrap().id)));
        names.insert(format!("job {}", job.id));
    }
    let containers =
        client.storage().list_containers(ListContainersRequest::default()).await.unwrap().into_inner().containers;
    for container in containers {
        let request = ListBlobsRequest { container: container.name.clone(), ..Default::default() };
        let blobs = client.storage().list_blobs(request).await.unwrap().into_inner().blobs;
        names.extend(blobs.iter().map(|blob| format!("blob {}/{}", container.name, blob.name)));
        names.insert(format!("container {}", container.name));
    }
    names
}
