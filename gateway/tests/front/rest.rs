//! The REST dialect over the wire.

use http::Method;
use kiln_auth::SecretKey;
use kiln_auth::token::{self, Claims, Principal};
use serde_json::json;

use crate::fakes::CONTENT;
use crate::harness::{ACCOUNT, Harness, VERSION};

fn pool(id: &str) -> String {
    json!({"id": id, "vmSize": "STANDARD_A1", "targetDedicatedNodes": "2",
        "virtualMachineConfiguration": {"nodeAgentSKUId": "batch.node.ubuntu 22.04"}})
    .to_string()
}

#[tokio::test]
async fn a_pool_is_made_read_and_found_to_exist() {
    let gateway = Harness::start().await;
    let made = gateway.post(&format!("/pools?{VERSION}"), &pool("p1")).await;
    assert_eq!(made.status, 201, "{:?}", made.body);
    assert_eq!(made.header("etag"), "0x8D1");
    assert_eq!(made.header("last-modified"), "Sat, 31 Jan 2026 12:00:00 GMT");
    assert_eq!(made.header("location"), format!("{}/pools/p1", gateway.url));
    assert_eq!(made.header("dataserviceid"), format!("{}/pools", gateway.url));
    assert_eq!(made.header("dataserviceversion"), "3.0");
    assert!(made.body.is_empty());
    assert_eq!(gateway.state.accounts.lock().unwrap().as_slice(), [ACCOUNT]);

    let read = gateway.get(&format!("/pools/p1?{VERSION}")).await;
    assert_eq!(read.header("content-type"), "application/json;odata=minimalmetadata");
    let body = read.json();
    assert_eq!(body["odata.metadata"], format!("{}/$metadata#pools/@Element", gateway.url));
    assert_eq!((&body["vmSize"], &body["targetDedicatedNodes"]), (&json!("standard_a1"), &json!(2)));
    assert_eq!(body["allocationState"], "resizing");
    assert_eq!(body["virtualMachineConfiguration"]["nodeAgentSKUId"], "batch.node.ubuntu 22.04");

    assert_eq!(gateway.call(Method::HEAD, &format!("/pools/p1?{VERSION}"), "", &[]).await.status, 200);
    let absent = gateway.call(Method::HEAD, &format!("/pools/p2?{VERSION}"), "", &[]).await;
    assert_eq!((absent.status.as_u16(), absent.body.len()), (404, 0));
}

#[tokio::test]
async fn errors_have_the_form_clients_parse() {
    let gateway = Harness::start().await;
    let answer = gateway.get(&format!("/pools/none?{VERSION}")).await;
    assert_eq!(answer.error(), (404, "PoolNotFound".into()));
    let body = answer.json();
    let text = body["message"]["value"].as_str().unwrap();
    assert!(text.starts_with("The specified pool does not exist.\nRequestId:"), "{text}");
    assert!(text.contains(answer.header("request-id")));
    assert!(body["odata.metadata"].as_str().unwrap().contains("errors/@Element"));
    assert_eq!(body["values"][0], json!({"key": "Id", "value": "none"}));

    gateway.post(&format!("/pools?{VERSION}"), &pool("p1")).await;
    let path = format!("/pools?{VERSION}");
    let cases = [
        (gateway.post(&path, &pool("p1")).await, 409, "PoolExists"),
        (gateway.post(&path, "{\"id\":").await, 400, "InvalidRequestBody"),
        (gateway.post(&path, "[]").await, 400, "InvalidRequestBody"),
        (gateway.post(&path, "{\"id\": \"x\"}").await, 400, "MissingRequiredProperty"),
        (gateway.get("/pools").await, 400, "MissingRequiredQueryParameter"),
        (gateway.get("/pools?api-version=1").await, 400, "InvalidQueryParameterValue"),
        (gateway.get(&format!("/pools?{VERSION}&maxresults=1001")).await, 400, "OutOfRangeQueryParameterValue"),
        (gateway.get(&format!("/pools?{VERSION}&$filter=bad")).await, 400, "InvalidQueryParameterValue"),
        (gateway.get(&format!("/nothing?{VERSION}")).await, 400, "InvalidUri"),
        (gateway.call(Method::PUT, &format!("/pools/p1?{VERSION}"), "", &[]).await, 405, "UnsupportedHttpVerb"),
        (gateway.get(&format!("/certificates?{VERSION}")).await, 501, "NotImplemented"),
        (gateway.post(&format!("/pools/p1/enableautoscale?{VERSION}"), "{}").await, 501, "NotImplemented"),
    ];
    for (answer, status, code) in cases {
        assert_eq!(answer.error(), (status, code.to_owned()), "{}", answer.json());
    }
}

#[tokio::test]
async fn strangers_are_refused() {
    let gateway = Harness::start().await;
    let path = format!("/pools?{VERSION}");
    let send = |headers: Vec<(&'static str, String)>| {
        let (gateway, path) = (&gateway, &path);
        async move {
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            gateway.send(Method::GET, path, "", &headers).await.error()
        }
    };
    assert_eq!(send(vec![]).await, (403, "AuthenticationFailed".into()));
    assert_eq!(send(vec![("authorization", "Basic x".into())]).await, (400, "InvalidAuthenticationInfo".into()));
    let date = kiln_time::Timestamp::now().to_http_date();
    for account in [ACCOUNT, "other"] {
        let headers = vec![("ocp-date", date.clone()), ("authorization", format!("SharedKey {account}:c2ln"))];
        assert_eq!(send(headers).await, (403, "AuthenticationFailed".into()));
    }
    let bearer = |key: &SecretKey| {
        let claims = Claims {
            principal: Principal::Account { account: ACCOUNT.into() },
            expires: kiln_grpc::caller::now_seconds() + 60,
        };
        vec![("authorization", format!("Bearer {}", token::mint(key, &claims)))]
    };
    assert_eq!(send(bearer(&SecretKey::generate())).await, (403, "AuthenticationFailed".into()));
    let headers = bearer(&gateway.key);
    let good = gateway.send(Method::GET, &path, "", &[("authorization", headers[0].1.as_str())]).await;
    assert_eq!(good.status, 200);
    assert_eq!(gateway.get(&path).await.status, 200);
    gateway.put_account(&SecretKey::generate()).await;
    assert_eq!(gateway.get(&path).await.error(), (403, "AuthenticationFailed".into()), "the key was replaced");
}

#[tokio::test]
async fn lists_are_paged_by_links_and_selected() {
    let gateway = Harness::start().await;
    for id in ["p1", "p2", "p3", "p4", "p5"] {
        assert_eq!(gateway.post(&format!("/pools?{VERSION}"), &pool(id)).await.status, 201);
    }
    let mut path = format!("/pools?{VERSION}&$select=id%2Cstate&maxresults=2");
    let mut seen = Vec::new();
    loop {
        let page = gateway.get(&path).await.json();
        for value in page["value"].as_array().unwrap() {
            assert_eq!(value.as_object().unwrap().len(), 2, "{value}");
            seen.push(value["id"].as_str().unwrap().to_owned());
        }
        let Some(link) = page.get("odata.nextLink").and_then(|link| link.as_str().map(str::to_owned)) else { break };
        path = link.strip_prefix(&gateway.url).expect("links are absolute").to_owned();
        assert_eq!(path.matches("skiptoken").count(), 1, "{path}");
    }
    assert_eq!(seen, ["p1", "p2", "p3", "p4", "p5"]);
}

#[tokio::test]
async fn conditions_are_told_by_412_and_304() {
    let gateway = Harness::start().await;
    gateway.post(&format!("/pools?{VERSION}"), &pool("p1")).await;
    let path = format!("/pools/p1?{VERSION}");
    let old = gateway.call(Method::PATCH, &path, "{}", &[("if-match", "\"0xOLD\"")]).await;
    assert_eq!(old.error(), (412, "ConditionNotMet".into()));
    let unchanged = gateway.call(Method::GET, &path, "", &[("if-none-match", "0x8D1")]).await;
    assert_eq!((unchanged.status.as_u16(), unchanged.body.len()), (304, 0));
    let bad = gateway.call(Method::GET, &path, "", &[("if-modified-since", "yesterday")]).await;
    assert_eq!(bad.error(), (400, "InvalidHeaderValue".into()));
}

#[tokio::test]
async fn properties_are_patched_or_replaced_whole() {
    let gateway = Harness::start().await;
    gateway.post(&format!("/pools?{VERSION}"), &pool("p1")).await;
    let patch = json!({"metadata": [{"name": "a", "value": "b"}]}).to_string();
    let answer = gateway.call(Method::PATCH, &format!("/pools/p1?{VERSION}"), &patch, &[]).await;
    assert_eq!(answer.status, 200);
    let sent = gateway.state.pool_update.lock().unwrap().take().unwrap();
    assert!(sent.metadata.is_some() && sent.application_packages.is_none() && !sent.clear_start_task);
    let body = json!({"certificateReferences": [], "applicationPackageReferences": [], "metadata": []}).to_string();
    let answer = gateway.post(&format!("/pools/p1/updateproperties?{VERSION}"), &body).await;
    assert_eq!(answer.status, 204);
    let sent = gateway.state.pool_update.lock().unwrap().take().unwrap();
    assert!(sent.metadata.is_some() && sent.application_packages.is_some() && sent.clear_start_task);
}

#[tokio::test]
async fn a_job_goes_back_as_it_was_read() {
    let gateway = Harness::start().await;
    let body = json!({"id": "j1", "poolInfo": {"poolId": "P1"}, "priority": 7}).to_string();
    assert_eq!(gateway.post(&format!("/jobs?{VERSION}"), &body).await.status, 201);
    let path = format!("/jobs/j1?{VERSION}");
    let read = gateway.get(&path).await.json().to_string();
    let put = gateway.call(Method::PUT, &path, &read, &[]).await;
    assert_eq!(put.status, 200, "{:?}", put.body);
    let sent = gateway.state.job_update.lock().unwrap().take().unwrap();
    assert_eq!((sent.priority, sent.max_parallel_tasks, sent.pool_id), (Some(7), Some(-1), None));
    let moved = json!({"poolInfo": {"poolId": "p2"}}).to_string();
    gateway.call(Method::PATCH, &path, &moved, &[]).await;
    let sent = gateway.state.job_update.lock().unwrap().take().unwrap();
    assert_eq!((sent.priority, sent.pool_id.as_deref()), (None, Some("p2")));
}

#[tokio::test]
async fn each_task_of_a_collection_has_its_own_result() {
    let gateway = Harness::start().await;
    let path = format!("/jobs/j1/addtaskcollection?{VERSION}");
    let task = |id: &str| json!({"id": id, "commandLine": "true"});
    let body = json!({"value": [task("a"), {"id": "broken"}, task("busy"), task("b")]}).to_string();
    let answer = gateway.post(&path, &body).await;
    assert_eq!(answer.status, 200);
    let json = answer.json();
    let rows: Vec<(&str, &str)> = json["value"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["taskId"].as_str().unwrap(), row["status"].as_str().unwrap()))
        .collect();
    assert_eq!(rows, [("a", "success"), ("broken", "clienterror"), ("busy", "servererror"), ("b", "success")]);
    assert_eq!(json["value"][0]["location"], format!("{}/jobs/j1/tasks/a", gateway.url));
    assert_eq!(json["value"][1]["error"]["code"], "MissingRequiredProperty");
    let again = gateway.post(&path, &json!({"value": [task("a")]}).to_string()).await.json();
    assert_eq!(again["value"][0]["error"]["code"], "TaskExists");
    let many: Vec<_> = (0..101).map(|n| task(&n.to_string())).collect();
    assert_eq!(gateway.post(&path, &json!({"value": many}).to_string()).await.error().0, 400);
}

#[tokio::test]
async fn bodies_above_a_mebibyte_are_refused_in_good_order() {
    let gateway = Harness::start().await;
    let path = format!("/jobs/j1/addtaskcollection?{VERSION}");
    let body = |length: usize| {
        let frame = json!({"value": [{"id": "a", "commandLine": ""}]}).to_string();
        frame.replace("\"commandLine\":\"\"", &format!("\"commandLine\":\"{}\"", "x".repeat(length - frame.len())))
    };
    assert_eq!(gateway.post(&path, &body(1_048_576)).await.status, 200);
    assert_eq!(gateway.post(&path, &body(1_048_577)).await.error(), (413, "RequestBodyTooLarge".into()));
    assert_eq!(gateway.post(&path, &body(20_000_000)).await.error(), (413, "RequestBodyTooLarge".into()));
    // A stranger's large body is read and dropped, too.
    let answer = gateway.send(Method::POST, &path, &body(5_000_000), &[]).await;
    assert_eq!(answer.error(), (403, "AuthenticationFailed".into()));
}

#[tokio::test]
async fn files_of_tasks_are_listed_described_and_read() {
    let gateway = Harness::start().await;
    let base = "/jobs/j1/tasks/t1/files";
    let list = gateway.get(&format!("{base}?{VERSION}&recursive=true")).await.json();
    assert_eq!(list["value"][0]["url"], format!("{}{base}/stdout.txt", gateway.url));
    assert_eq!(list["value"][0]["properties"]["contentLength"], "12");
    assert_eq!(list["value"][0]["properties"]["fileMode"], "0o100644");
    assert!(list["value"][1].get("properties").is_none());

    let path = format!("{base}/stdout.txt?{VERSION}");
    let head = gateway.call(Method::HEAD, &path, "", &[]).await;
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), "12");
    assert_eq!(head.header("ocp-batch-file-isdirectory"), "False");
    assert_eq!(head.header("ocp-batch-file-mode"), "0o100644");
    assert!(head.headers.get("ocp-creation-time").is_none());
    assert!(head.header("ocp-batch-file-url").starts_with("http%3A%2F%2F127.0.0.1"));

    assert_eq!(gateway.get(&path).await.body, CONTENT);
    let part = gateway.call(Method::GET, &path, "", &[("ocp-range", "bytes=6-10")]).await;
    assert_eq!((part.status.as_u16(), &part.body[..]), (200, &b"world"[..]));
    let behind = gateway.call(Method::GET, &path, "", &[("ocp-range", "bytes=12-")]).await;
    assert_eq!(behind.error(), (416, "InvalidRange".into()));
    assert_eq!(gateway.get(&format!("{base}/wd%2Fnone?{VERSION}")).await.error(), (404, "FileNotFound".into()));
    assert_eq!(gateway.get(&format!("{base}/..%2Ft2%2Fstdout.txt?{VERSION}")).await.error().0, 400);
    assert_eq!(
        gateway.get(&format!("/jobs/j1/tasks/new/files?{VERSION}")).await.error(),
        (409, "OperationInvalidForCurrentState".into())
    );
}

#[tokio::test]
async fn images_are_listed_in_both_generations() {
    let gateway = Harness::start().await;
    let filter = "$filter=verificationType%20eq%20%27verified%27";
    let images = gateway.get(&format!("/supportedimages?{VERSION}&{filter}")).await.json();
    let jammy = images["value"].as_array().unwrap().iter().any(|image| image["imageReference"]["sku"] == "22_04-lts");
    assert!(jammy);
    let none = gateway.get(&format!("/supportedimages?{VERSION}&$filter=osType%20eq%20%27windows%27")).await.json();
    assert_eq!(none["value"], json!([]));
    let skus = gateway.get("/nodeagentskus?api-version=2017-01-01.4.0").await.json();
    assert_eq!(skus["value"][1]["verifiedImageReferences"][0]["offer"], "ubuntuserver");
}

#[tokio::test]
async fn operators_need_no_key() {
    let gateway = Harness::start().await;
    gateway.get(&format!("/pools?{VERSION}")).await;
    gateway.get(&format!("/whatever{}?{VERSION}", "x".repeat(50))).await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(gateway.send(Method::GET, path, "", &[]).await.status, 200);
    }
    let metrics = gateway.send(Method::GET, "/metrics", "", &[]).await;
    let text = String::from_utf8(metrics.body.to_vec()).unwrap();
    assert!(text.contains("kiln_gateway_requests_total{code=\"200\",front=\"rest\",method=\"PoolList\"} 1"), "{text}");
    assert!(text.contains("method=\"other\"") && !text.contains("whatever"));
}
