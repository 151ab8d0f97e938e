//! What the REST front refuses, with which code, and that nothing is left of it.
#![allow(clippy::unwrap_used)]

use jiff::{Timestamp, ToSpan};
use kiln_auth::SecretKey;
use kiln_e2e::inventory::inventory;
use kiln_e2e::rest::{Answer, Batch};
use kiln_e2e::server::{Server, find_files};
use kiln_e2e::work::{job, pool, run_task, shell_task};

fn is(what: &str, answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}: {}", answer.text());
}

#[tokio::test]
async fn callers_who_cannot_prove_who_they_are() {
    let server = Server::start().await;
    let good = Batch::of(&server);
    assert_eq!(good.send("GET", "/pools", "").await.status, 200);
    let wrong = good.clone().with_key(SecretKey::generate());
    is("wrong key", &wrong.send("GET", "/pools", "").await, 403, "AuthenticationFailed");
    is("wrong key, write", &wrong.send("POST", "/jobs", r#"{"id":"j"}"#).await, 403, "AuthenticationFailed");
    let stranger = good.clone().with_account("nobody");
    is("unknown account", &stranger.send("GET", "/pools", "").await, 403, "AuthenticationFailed");
    for hours in [-1, 1] {
        let at = Timestamp::now() + (hours * 60).minutes();
        is("clock off", &good.send_at("GET", "/pools", "", at, &[]).await, 403, "AuthenticationFailed");
    }
    let altered = good.send_at("GET", "/pools", "", Timestamp::now(), &[("If-Match", "0x8D0")]).await;
    is("a signed header was added on the way", &altered, 403, "AuthenticationFailed");
    for header in ["SharedKey", "SharedKey a", "SharedKey a:!!", "Basic YTpi", "Bearer nonsense", "Bearer kiln1.e30.x"]
    {
        let answer = good.unsigned("GET", "/pools", &[("Authorization", header)]).await;
        assert!(matches!(answer.status, 400 | 401 | 403), "{header}: {}", answer.text());
        assert!(answer.code().contains("Authentication"), "{header}: {}", answer.text());
    }
    let answer = good.unsigned("GET", "/pools", &[]).await;
    assert!(matches!(answer.status, 401 | 403), "no credentials: {}", answer.text());
    server.stop().await;
}

#[tokio::test]
async fn things_that_do_not_exist_or_exist_already() {
    let server = Server::start().await;
    let client = server.client();
    let rest = Batch::of(&server);
    let pool = r#"{"id":"p","vmSize":"local","targetDedicatedNodes":0}"#;
    assert_eq!(rest.send("POST", "/pools", pool).await.status, 201);
    assert_eq!(rest.send("POST", "/jobs", r#"{"id":"j","poolInfo":{"poolId":"p"}}"#).await.status, 201);
    assert_eq!(rest.send("POST", "/jobs/j/tasks", r#"{"id":"t","commandLine":"true"}"#).await.status, 201);
    let before = inventory(&client).await;

    let cases = [
        ("GET", "/pools/none", "", 404, "PoolNotFound"),
        ("DELETE", "/pools/none", "", 404, "PoolNotFound"),
        ("GET", "/pools/none/nodes", "", 404, "PoolNotFound"),
        ("GET", "/pools/p/nodes/none", "", 404, "NodeNotFound"),
        ("GET", "/jobs/none", "", 404, "JobNotFound"),
        ("POST", "/jobs/none/disable", r#"{"disableTasks":"requeue"}"#, 404, "JobNotFound"),
        ("POST", "/jobs/none/tasks", r#"{"id":"t","commandLine":"true"}"#, 404, "JobNotFound"),
        ("GET", "/jobs/none/tasks/t", "", 404, "JobNotFound"),
        ("GET", "/jobs/j/tasks/none", "", 404, "TaskNotFound"),
        ("DELETE", "/jobs/j/tasks/none", "", 404, "TaskNotFound"),
        ("POST", "/pools", pool, 409, "PoolExists"),
        ("POST", "/pools", r#"{"id":"P","vmSize":"local","targetDedicatedNodes":0}"#, 409, "PoolExists"),
        ("POST", "/jobs", r#"{"id":"J","poolInfo":{"poolId":"p"}}"#, 409, "JobExists"),
        ("POST", "/jobs/j/tasks", r#"{"id":"T","commandLine":"true"}"#, 409, "TaskExists"),
        ("GET", "/nothing/here", "", 400, "InvalidUri"),
        ("PATCH", "/pools", "{}", 405, "UnsupportedHttpVerb"),
    ];
    for (method, path, body, status, code) in cases {
        is(&format!("{method} {path}"), &rest.send(method, path, body).await, status, code);
    }
    let head = rest.send("HEAD", "/pools/none", "").await;
    assert_eq!((head.status, head.body.len()), (404, 0), "HEAD has no body");
    assert_eq!(inventory(&client).await, before);
    server.stop().await;
}

#[tokio::test]
async fn bodies_and_values_that_make_no_sense() {
    let server = Server::start().await;
    let client = server.client();
    let rest = Batch::of(&server);
    assert_eq!(rest.send("POST", "/jobs", r#"{"id":"j","poolInfo":{"poolId":"later"}}"#).await.status, 201);
    let before = inventory(&client).await;

    let long = format!(r#"{{"id":"{}","poolInfo":{{"poolId":"p"}}}}"#, "x".repeat(65));
    let cases = [
        ("POST", "/jobs", "{", 400, "InvalidRequestBody"),
        ("POST", "/jobs", "[]", 400, "InvalidRequestBody"),
        ("POST", "/jobs", "\u{1}", 400, "InvalidRequestBody"),
        ("POST", "/jobs", r#"{"poolInfo":{"poolId":"p"}}"#, 400, "MissingRequiredProperty"),
        ("POST", "/jobs", r#"{"id":"k"}"#, 400, "MissingRequiredProperty"),
        ("POST", "/jobs", r#"{"id":"a b","poolInfo":{"poolId":"p"}}"#, 400, "InvalidPropertyValue"),
        ("POST", "/jobs", r#"{"id":"../k","poolInfo":{"poolId":"p"}}"#, 400, "InvalidPropertyValue"),
        ("POST", "/jobs", &long, 400, "InvalidPropertyValue"),
        ("POST", "/jobs", r#"{"id":"k","poolInfo":{"poolId":"p"},"priority":"much"}"#, 400, "InvalidPropertyValue"),
        ("POST", "/pools", r#"{"id":"p"}"#, 400, "MissingRequiredProperty"),
        ("POST", "/pools", r#"{"id":"p","vmSize":"local","targetDedicatedNodes":-1}"#, 400, "InvalidPropertyValue"),
        ("POST", "/jobs/j/tasks", r#"{"id":"t"}"#, 400, "MissingRequiredProperty"),
        (
            "POST",
            "/jobs/j/tasks",
            r#"{"id":"t","commandLine":"true","environmentSettings":[{"name":"AZ_BATCH_TASK_ID","value":"x"}]}"#,
            400,
            "InvalidPropertyValue",
        ),
        (
            "POST",
            "/jobs/j/tasks",
            r#"{"id":"t","commandLine":"true","resourceFiles":[{"httpUrl":"http://h/f","filePath":"../../f"}]}"#,
            400,
            "InvalidPropertyValue",
        ),
        ("GET", "/jobs?$filter=state%20equals%20active", "", 400, "InvalidQueryParameterValue"),
        ("GET", "/jobs?maxresults=0", "", 400, "OutOfRangeQueryParameterValue"),
    ];
    for (method, path, body, status, code) in cases {
        is(&format!("{method} {path} {body}"), &rest.send(method, path, body).await, status, code);
    }
    let priority = rest.send("POST", "/jobs", r#"{"id":"k","poolInfo":{"poolId":"p"},"priority":5000}"#).await;
    assert_eq!(priority.status, 400, "{}", priority.text());
    let stale = [("If-Match", "\"0x8D0000000000000\"")];
    let answer = rest.send_with_condition("DELETE", "/jobs/j", stale[0]).await;
    is("a version that is not the present one", &answer, 412, "ConditionNotMet");
    assert_eq!(inventory(&client).await, before);
    server.stop().await;
}

#[tokio::test]
async fn bodies_that_are_too_large() {
    let server = Server::start().await;
    let client = server.client();
    let rest = Batch::of(&server);
    assert_eq!(rest.send("POST", "/jobs", r#"{"id":"j","poolInfo":{"poolId":"later"}}"#).await.status, 201);
    let before = inventory(&client).await;
    let environment = format!(r#"[{{"name":"A","value":"{}"}}]"#, "x".repeat(12_000));
    let tasks: Vec<_> = (0..100)
        .map(|n| format!(r#"{{"id":"t{n}","commandLine":"true","environmentSettings":{environment}}}"#))
        .collect();
    let body = format!(r#"{{"value":[{}]}}"#, tasks.join(","));
    assert!(body.len() > 1024 * 1024);
    is("1.2 MB of tasks", &rest.send("POST", "/jobs/j/addtaskcollection", &body).await, 413, "RequestBodyTooLarge");
    let tasks: Vec<_> = (0..101).map(|n| format!(r#"{{"id":"t{n}","commandLine":"true"}}"#)).collect();
    let answer = rest.send("POST", "/jobs/j/addtaskcollection", &format!(r#"{{"value":[{}]}}"#, tasks.join(","))).await;
    assert_eq!(answer.status, 400, "101 tasks: {}", answer.text());
    assert_eq!(inventory(&client).await, before);
    server.stop().await;
}

#[tokio::test]
async fn paths_that_lead_out_of_the_task() {
    let server = Server::start().await;
    let client = server.client();
    let rest = Batch::of(&server);
    pool(&client, "p", 1, 1).await;
    job(&client, "j", "p", &[]).await;
    run_task(&client, "j", shell_task("t", "echo secret > ../../neighbour; ln -s / root; echo x > file")).await;
    let join = find_files(&server.data(), "join.json");
    assert_eq!(join.len(), 1, "the node's own files are what nobody may read");

    let up = "..%2F";
    for path in [
        format!("{up}neighbour"),
        format!("wd%2F{up}{up}{up}neighbour"),
        format!("{}join.json", up.repeat(5)),
        "%2Fetc%2Fpasswd".to_owned(),
        "wd%2Froot%2Fetc%2Fpasswd".to_owned(),
        "wd%2Ffile%00".to_owned(),
    ] {
        for method in ["GET", "HEAD", "DELETE"] {
            let answer = rest.send(method, &format!("/jobs/j/tasks/t/files/{path}"), "").await;
            assert!(matches!(answer.status, 400 | 403 | 404), "{method} {path}: {}\n{}", answer.status, answer.text());
            assert!(!answer.text().contains("root:"), "{method} {path}");
        }
    }
    let node = &kiln_e2e::work::nodes(&client, "p").await[0].id;
    for path in ["..%2Fjoin.json", "..%2F..%2Fkiln.db", "shared%2F..%2F..%2Fjoin.json"] {
        let answer = rest.send("GET", &format!("/pools/p/nodes/{node}/files/{path}"), "").await;
        assert!(matches!(answer.status, 400 | 403 | 404), "{path}: {}\n{}", answer.status, answer.text());
        assert!(!answer.text().contains("join_token"), "{path}");
    }
    assert_eq!(rest.send("GET", "/jobs/j/tasks/t/files/wd%2Ffile", "").await.text(), "x\n");
    assert!(join[0].exists(), "nothing was deleted");
    server.stop().await;
}
