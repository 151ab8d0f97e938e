//! Takes away what a run made on a server that stays.

use std::time::Duration;

use kiln_client::Client;
use kiln_proto::job::v1::{DeleteJobRequest, GetJobRequest};
use kiln_proto::pool::v1::{DeletePoolRequest, GetPoolRequest};
use kiln_proto::storage::v1::DeleteContainerRequest;
use tonic::{Code, Status};

use super::carry_out::Made;
use super::model::Workflow;
use crate::failure::Outcome;
use crate::transfer::{request_id, retry};

/// How long something that is being deleted may take to vanish.
const LIMIT: Duration = Duration::from_secs(60);

/// Deletes and waits until it is gone; gives what could not be taken away.
pub async fn clean_up(client: &Client, made: Made, workflow: &Workflow) -> Vec<String> {
    let job = async {
        if !made.job {
            return None;
        }
        let result = remove_job(client, &workflow.job.id).await;
        result.err().map(|failure| format!("job {}: {failure}", workflow.job.id))
    };
    let pool = async {
        if !made.pool {
            return None;
        }
        let result = remove_pool(client, &workflow.pool.id).await;
        result.err().map(|failure| format!("pool {}: {failure}", workflow.pool.id))
    };
    let (job, pool) = tokio::join!(job, pool);
    // Last, since tasks may have been writing until now.
    let containers = futures::future::join_all(made.containers.iter().map(|name| async move {
        let result = remove_container(client, name).await;
        result.err().map(|failure| format!("container {name}: {failure}"))
    }))
    .await;
    [job, pool].into_iter().chain(containers).flatten().collect()
}

/// Has a job deleted; it vanishes when its tasks have.
///
/// # Errors
/// What the service said.
pub async fn delete_job(client: &Client, id: &str) -> Outcome {
    retry(|| async {
        let request = DeleteJobRequest { request_id: request_id(), id: id.to_owned(), precondition: None };
        gone_is_fine(client.jobs().delete_job(request).await.map(drop))
    })
    .await
}

async fn remove_job(client: &Client, id: &str) -> Outcome {
    delete_job(client, id).await?;
    vanished(|| async {
        client.jobs().get_job(GetJobRequest { id: id.to_owned(), precondition: None }).await.map(drop)
    })
    .await
}

async fn remove_pool(client: &Client, id: &str) -> Outcome {
    retry(|| async {
        let request = DeletePoolRequest { request_id: request_id(), id: id.to_owned(), precondition: None };
        gone_is_fine(client.pools().delete_pool(request).await.map(drop))
    })
    .await?;
    vanished(|| async {
        client.pools().get_pool(GetPoolRequest { id: id.to_owned(), precondition: None }).await.map(drop)
    })
    .await
}

async fn remove_container(client: &Client, name: &str) -> Outcome {
    retry(|| async {
        let request = DeleteContainerRequest { request_id: request_id(), name: name.to_owned() };
        gone_is_fine(client.storage().delete_container(request).await.map(drop))
    })
    .await
}

/// Also fine: somebody else is deleting it right now.
fn gone_is_fine(result: Result<(), Status>) -> Outcome {
    match result {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => {
            let error = kiln_error::Error::from(status.clone());
            if error.reason().ends_with("BeingDeleted") { Ok(()) } else { Err(status.into()) }
        }
        Ok(()) => Ok(()),
    }
}

async fn vanished<F, Fut>(look: F) -> Outcome
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<(), Status>>,
{
    let search = async {
        let mut pause = Duration::from_millis(2);
        loop {
            match look().await {
                Err(status) if status.code() == Code::NotFound => return Ok(()),
                Err(status) if status.code() != Code::Unavailable => return Err(status.into()),
                _ => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    };
    match tokio::time::timeout(LIMIT, search).await {
        Ok(result) => result,
        Err(_) => Err(anyhow::anyhow!("still there after {LIMIT:?}").into()),
    }
}
