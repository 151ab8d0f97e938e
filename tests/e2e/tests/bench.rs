//! `kiln bench` works and prints one object. How fast anything is, is not asked here.
#![allow(clippy::unwrap_used)]

use kiln_e2e::programs::{command, kiln, text};
use serde_json::Value;

/// Runs `kiln bench` with a server of its own.
async fn bench(arguments: &[&str]) -> Value {
    // Subscribers of TLS defaults are the program's business; this only starts it.
    let output =
        command(&kiln()).env_remove("KILN_DATA").arg("bench").args(arguments).args(["--output", "json"]).output();
    let output = output.await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["bench"], arguments[0], "{value}");
    value
}

/// Figures that must be there and above zero.
fn positive(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value[*name].as_f64().is_some_and(|figure| figure > 0.0), "{name} in {value:#}");
    }
}

const TASKS: [&str; 7] =
    ["count", "nodes", "seconds", "tasks_per_second", "floor_per_second", "ratio_to_floor", "server_cpu_us_per_task"];

#[tokio::test]
async fn tasks_with_processes_and_without() {
    let real = bench(&["tasks", "--count", "20", "--nodes", "1", "--slots", "2", "--repeat", "1"]).await;
    positive(&real, &TASKS);
    let simulated =
        bench(&["tasks", "--simulated", "--count", "500", "--nodes", "3", "--slots", "8", "--repeat", "2"]).await;
    positive(&simulated, &TASKS);
    positive(&simulated, &["job_svc_cpu_us_per_task", "peak_memory_bytes"]);
    assert_eq!((&simulated["count"], &simulated["repeat"]), (&Value::from(500), &Value::from(2)));
    assert_eq!(simulated["rounds"].as_array().unwrap().len(), 2);
    positive(&simulated["min"], &["seconds"]);
    positive(&simulated["max"], &["seconds"]);
}

#[tokio::test]
async fn a_queue_that_is_filled_and_a_task_before_it() {
    let submit = bench(&["submit", "--count", "5000", "--repeat", "1"]).await;
    positive(&submit, &["seconds", "tasks_per_second", "last_to_first", "resident_bytes"]);
    assert!(!submit["curve"].as_array().unwrap().is_empty());
    let latency = bench(&["latency", "--count", "5", "--repeat", "1", "--queued", "2000"]).await;
    positive(&latency, &["median_ms", "p99_ms", "floor_ms"]);
    let polled = bench(&["latency", "--count", "3", "--repeat", "1", "--by", "poll"]).await;
    positive(&polled, &["median_ms"]);
}

#[tokio::test]
async fn loads_and_numbers_of_nodes() {
    let mut load = command(&kiln());
    load.env_remove("KILN_DATA").args(["bench", "latency", "--load", "20", "--output", "json"]);
    let output = load.output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    positive(&value["curve"][0], &["offered_per_second", "median_ms", "p99_ms"]);
    let nodes = bench(&["nodes", "--nodes", "2,150", "--count", "600", "--slots", "20", "--repeat", "1"]).await;
    positive(&nodes, &["most_to_fewest", "tasks_per_second_most_nodes"]);
    positive(&nodes["points"][1][0], &["heartbeats", "seconds"]);
    let core = bench(&["core", "--count", "1000", "--nodes", "3", "--repeat", "1"]).await;
    positive(&core, &["placements_per_second", "ratio_to_floor"]);
}

#[tokio::test]
async fn blobs_of_an_own_server_and_of_one_that_runs() {
    const SMALL: [&str; 8] = ["--seconds", "0.1", "--large", "9", "--names", "5100", "--repeat", "1"];
    let own = bench(&[&["blobs"][..], &SMALL].concat()).await;
    let all = [
        "put_1_per_second",
        "put_16_per_second",
        "put_1_to_floor",
        "get_1_per_second",
        "get_16_per_second",
        "upload_mib_per_second",
        "upload_to_floor",
        "download_mib_per_second",
        "download_to_floor",
        "first_page_ms",
        "names_per_second",
    ];
    positive(&own, &all);
    positive(&own, &["peak_memory_bytes", "floor_copy_mib_per_second", "floor_tcp_mib_per_second"]);

    let server = kiln_e2e::server::Server::start().await;
    let storage = server.variable("AZURE_STORAGE_CONNECTION_STRING");
    let part = |name: &str| {
        let part = storage.split(';').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        part.unwrap_or_else(|| panic!("{name} in the connection string")).to_owned()
    };
    let (account, key) = (part("AccountName"), part("AccountKey"));
    let endpoint = part("BlobEndpoint").replace(&format!("/{account}"), "");
    let there = ["--endpoint", &endpoint, "--account", &account, "--key", &key];
    let other = bench(&[&["blobs"][..], &SMALL, &there].concat()).await;
    positive(&other, &all);
    assert!(other.get("peak_memory_bytes").is_none(), "nothing is known about its process");
    server.stop().await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_the_benchmarks_own_kills() {
    let crashed = bench(&["blobs", "--crash", "--kills", "3"]).await;
    positive(&crashed, &["kills", "acknowledged", "names"]);
    assert_eq!((&crashed["lost"], &crashed["torn"]), (&Value::from(0), &Value::from(0)), "{crashed:#}");
}

#[tokio::test]
async fn simulated_nodes_need_the_key_of_the_deployment() {
    let output = command(&kiln())
        .args(["bench", "tasks", "--simulated", "--endpoint", "http://127.0.0.1:9", "--account", "a"])
        .env("KILN_ACCOUNT_KEY", "a2V5LWtleS1rZXkta2V5LWtleS0=")
        .output()
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", text(&output));
    assert!(text(&output).contains("--data"), "{}", text(&output));
}
