//! Against a real broker: `KILN_TEST_AMQP_URL`, or one on this machine. Every
//! test has its own exchange and queues and removes them.

use std::collections::HashSet;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kiln_testkit::eventually;
use tokio::net::{TcpListener, TcpStream};

use super::dead::{DeadLetter, DeadLetters, Done, Fate};
use super::*;
use crate::conformance::{message, suite};

fn url() -> String {
    std::env::var("KILN_TEST_AMQP_URL").unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned())
}

fn config(name: &str) -> RabbitConfig {
    let unique = format!("test.{name}.{}", uuid::Uuid::new_v4().simple());
    RabbitConfig { exchange: unique.clone(), queue_prefix: format!("{unique}."), ..RabbitConfig::new(url(), unique) }
}

async fn bus(config: RabbitConfig) -> RabbitBus {
    let bus = RabbitBus::new(config).unwrap();
    if let Err(error) = bus.connected().await {
        panic!("these tests need RabbitMQ (set KILN_TEST_AMQP_URL, or start one on 127.0.0.1:5672): {error}");
    }
    bus
}

fn queue(prefetch: u16) -> QueueSpec {
    QueueSpec { name: "q".into(), bindings: vec!["a.#".into()], prefetch }
}

/// Runs `rabbitmqctl`; the broker must be on this machine for that.
async fn ctl(arguments: &[&str]) -> String {
    let output = tokio::process::Command::new("rabbitmqctl")
        .arg("--quiet")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .expect("this test needs rabbitmqctl");
    assert!(output.status.success(), "rabbitmqctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes the broker close all connections of the bus named `name`.
async fn close_connections(name: &str) -> usize {
    let script = format!(
        "lists:sum([begin rabbit_networking:close_connection(P, \"test\"), 1 end || \
         [{{pid, P}}, {{client_properties, C}}] <- rabbit_networking:connection_info_all([pid, client_properties]), \
         {{<<\"connection_name\">>, _, N}} <- C, string:prefix(binary_to_list(N), \"{name}\") =/= nomatch])."
    );
    ctl(&["eval", &script]).await.trim().parse().expect("rabbitmqctl eval gives the number of connections")
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    let bus = bus(config("contract")).await;
    suite(Arc::new(bus.clone()), "").await;
    bus.remove_everything().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_message_is_lost_when_the_broker_closes_connections() {
    const MESSAGES: usize = 10_000;
    const CLOSES: usize = 4;
    let config = config("closes");
    let name = config.name.clone();
    let bus = bus(config).await;
    let mut subscription = bus.subscribe(&queue(200)).await.unwrap();

    let closed = Arc::new(AtomicUsize::new(0));
    let closer = kiln_telemetry::spawn({
        let closed = closed.clone();
        async move {
            while closed.load(Ordering::SeqCst) < CLOSES {
                if close_connections(&name).await > 0 {
                    closed.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    });
    // As the outbox does: a batch is sent again until all of it is confirmed.
    // Goes on beyond MESSAGES until connections were closed often enough.
    let refused = Arc::new(AtomicUsize::new(0));
    let publisher = kiln_telemetry::spawn({
        let (bus, closed, refused) = (bus.clone(), closed.clone(), refused.clone());
        async move {
            let mut sent = 0;
            while sent < MESSAGES || (closed.load(Ordering::SeqCst) < CLOSES && sent < 50 * MESSAGES) {
                let batch: Vec<Message> = (sent..sent + 250).map(|n| message("a.b", n)).collect();
                sent += batch.len();
                while bus.publish_all(batch.clone()).await.is_err() {
                    refused.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            sent
        }
    });
    let done = Arc::new(AtomicBool::new(false));
    let received = Arc::new(Mutex::new(HashSet::new()));
    let counts = Arc::new((AtomicUsize::new(0), AtomicUsize::new(0)));
    let consumer = kiln_telemetry::spawn({
        let (received, counts, done) = (received.clone(), counts.clone(), done.clone());
        async move {
            while !done.load(Ordering::SeqCst) {
                let Ok(next) = tokio::time::timeout(Duration::from_millis(100), subscription.next()).await else {
                    continue;
                };
                let delivery = next.unwrap();
                counts.0.fetch_add(1, Ordering::SeqCst);
                let id: usize = delivery.message.id.parse().unwrap();
                received.lock().unwrap().insert(id);
                if delivery.ack().await.is_err() {
                    counts.1.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    });
    let sent = publisher.await.unwrap();
    closer.await.unwrap();
    eventually("every message arriving", || async { (received.lock().unwrap().len() == sent).then_some(()) }).await;
    done.store(true, Ordering::SeqCst);
    consumer.await.unwrap();
    println!(
        "{sent} messages, {CLOSES} closes, {} deliveries, {} failed acks, {} refused batches",
        counts.0.load(Ordering::SeqCst),
        counts.1.load(Ordering::SeqCst),
        refused.load(Ordering::SeqCst)
    );
    assert!(refused.load(Ordering::SeqCst) > 0, "no batch met a closed connection: the test showed nothing");
    bus.remove_everything().await.unwrap();
}

/// Stands between client and broker, and can cut or stall what passes.
struct Proxy {
    url: String,
    cut: tokio::sync::watch::Sender<u64>,
    stalled: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    async fn start() -> Self {
        let target: AMQPUri = url().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let authority = format!("{}:{}", target.authority.host, target.authority.port);
        let (cut, cuts) = tokio::sync::watch::channel(0);
        let (stalled, stalls) = tokio::sync::watch::channel(false);
        kiln_telemetry::spawn({
            let authority = authority.clone();
            async move {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let (authority, mut cuts, stalls) = (authority.clone(), cuts.clone(), stalls.clone());
                    cuts.mark_unchanged();
                    kiln_telemetry::spawn(async move {
                        let server = TcpStream::connect(authority).await.unwrap();
                        let (client_in, client_out) = client.into_split();
                        let (server_in, server_out) = server.into_split();
                        tokio::select! {
                            _ = cuts.changed() => {}
                            () = pipe(client_in, server_out, stalls.clone()) => {}
                            () = pipe(server_in, client_out, stalls) => {}
                        }
                    });
                }
            }
        });
        Self { url: url().replace(&authority, &format!("127.0.0.1:{port}")), cut, stalled }
    }
}

async fn pipe(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut stalled: tokio::sync::watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if stalled.wait_for(|stalled| !stalled).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_over_a_lost_connection_is_an_error_and_the_message_comes_again() {
    let proxy = Proxy::start().await;
    let bus = bus(RabbitConfig { url: proxy.url.clone(), ..config("ack") }).await;
    let mut subscription = bus.subscribe(&queue(10)).await.unwrap();
    bus.publish(message("a.b", 1)).await.unwrap();
    let old = subscription.next().await.unwrap();
    proxy.cut.send_modify(|cuts| *cuts += 1);
    let again = subscription.next().await.unwrap();
    assert!(again.redelivered);
    assert_eq!(again.message, old.message);
    assert!(matches!(old.ack().await, Err(BusError::Unavailable(_))));
    again.ack().await.unwrap();
    bus.remove_everything().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_does_not_answer_is_left_and_found_again() {
    let proxy = Proxy::start().await;
    let config = RabbitConfig { url: proxy.url.clone(), answer_within: Duration::from_millis(500), ..config("silent") };
    let bus = bus(config).await;
    let mut subscription = bus.subscribe(&queue(10)).await.unwrap();
    proxy.stalled.send_replace(true);
    assert!(matches!(bus.publish(message("a.b", 1)).await, Err(BusError::Unavailable(_))));
    // The consuming connection is found dead when it is used, or by heartbeat.
    assert!(matches!(bus.declare(&queue(10)).await, Err(BusError::Unavailable(_))));
    proxy.stalled.send_replace(false);
    eventually("publishing again", || async { bus.publish(message("a.b", 2)).await.ok() }).await;
    let mut seen = HashSet::new();
    while !seen.contains("2") {
        let delivery = subscription.next().await.unwrap();
        seen.insert(delivery.message.id.clone());
        delivery.ack().await.ok();
    }
    eventually("removal", || async { bus.remove_everything().await.ok() }).await;
}

#[tokio::test]
async fn without_a_broker_publishers_hear_so_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let bus = RabbitBus::new(RabbitConfig::new(format!("amqp://127.0.0.1:{port}/%2f"), "none")).unwrap();
    for _ in 0..3 {
        assert!(matches!(bus.publish(message("a.b", 1)).await, Err(BusError::Unavailable(_))));
        assert!(matches!(bus.declare(&queue(1)).await, Err(BusError::Unavailable(_))));
    }
    bus.close();
    eventually("closing", || async {
        matches!(bus.publish(message("a.b", 1)).await, Err(BusError::Closed)).then_some(())
    })
    .await;
    assert!(matches!(RabbitBus::new(RabbitConfig::new("not a url", "none")), Err(BusError::Refused(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_delivered_goes_to_the_dead_letters() {
    let config = RabbitConfig { delivery_limit: 3, ..config("poison") };
    let exchange = config.exchange.clone();
    let bus = bus(config).await;
    let mut subscription = bus.subscribe(&queue(10)).await.unwrap();
    bus.publish(message("a.b", "poison")).await.unwrap();
    bus.publish(message("a.b", "good")).await.unwrap();
    let mut tries = 0;
    loop {
        let delivery = subscription.next().await.unwrap();
        if delivery.message.id == "poison" {
            tries += 1;
            drop(delivery);
        } else {
            delivery.ack().await.unwrap();
        }
        if tries == 4 {
            break;
        }
    }
    let session = bus.consuming().session().await.unwrap();
    let channel = session.channel().await.unwrap();
    let dead = format!("{exchange}.dead-letters");
    let letter = eventually("the dead letter", || async {
        let get = channel.basic_get(dead.as_str().into(), lapin::options::BasicGetOptions { no_ack: true });
        get.await.unwrap()
    })
    .await;
    assert_eq!(letter.delivery.data, b"poison");
    bus.remove_everything().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_other_settings_is_refused_and_the_rest_goes_on() {
    let config = config("refused");
    let first = bus(config.clone()).await;
    first.declare(&queue(10)).await.unwrap();
    let second = bus(RabbitConfig { delivery_limit: 7, ..config }).await;
    let refused = second.declare(&queue(10)).await.unwrap_err();
    assert!(matches!(&refused, BusError::Refused(why) if why.contains("rabbitmqctl delete_queue")), "{refused}");
    let mut other = second.subscribe(&QueueSpec { name: "other".into(), ..queue(10) }).await.unwrap();
    second.publish(message("a.b", 1)).await.unwrap();
    other.next().await.unwrap().ack().await.unwrap();
    drop(other);
    second.remove_everything().await.unwrap();
    first.inner.shared.declared().clear();
    let session = first.consuming().session().await.unwrap();
    let channel = session.channel().await.unwrap();
    let name = topology::queue_name(&first.inner.shared.config, "q");
    channel.queue_delete(name.as_str().into(), lapin::options::QueueDeleteOptions::default()).await.unwrap();
}

/// Makes every message of `ids` a dead letter of the queue `q`.
async fn deaden(bus: &RabbitBus, subscription: &mut Box<dyn Subscription>, ids: &[&str]) {
    for id in ids {
        bus.publish(message("a.b", id)).await.unwrap();
    }
    // Given back more often than the queue allows.
    let limit = bus.inner.shared.config.delivery_limit as usize;
    for _ in 0..ids.len() * (limit + 1) {
        drop(subscription.next().await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_looked_at_replayed_once_and_dropped() {
    let config = RabbitConfig { delivery_limit: 1, ..config("letters") };
    let bus = bus(config.clone()).await;
    let mut subscription = bus.subscribe(&queue(10)).await.unwrap();
    // What is replayed is for this queue alone.
    let other = QueueSpec { name: "other".into(), ..queue(10) };
    let mut beside = bus.subscribe(&other).await.unwrap();
    deaden(&bus, &mut subscription, &["one", "two", "three"]).await;
    for id in ["one", "two", "three"] {
        let delivery = beside.next().await.unwrap();
        assert_eq!(delivery.message.id, id);
        delivery.ack().await.unwrap();
    }
    let dead = DeadLetters::open(config.clone()).await.unwrap();
    let look = || async {
        let mut letters = Vec::new();
        dead.each(|letter| {
            letters.push(letter.clone());
            Fate::Keep
        })
        .await
        .unwrap();
        letters
    };
    // A look changes nothing.
    for _ in 0..3 {
        let letters = eventually("three letters", || async { Some(look().await).filter(|all| all.len() == 3) }).await;
        let mut ids: Vec<_> = letters.iter().map(|letter| letter.message.id.as_str()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["one", "three", "two"]);
        for letter in letters {
            assert_eq!(letter.message, message("a.b", &letter.message.id));
            assert_eq!((letter.queue, letter.times), (format!("{}q", config.queue_prefix), 1));
            assert_eq!(letter.reason, "delivery_limit");
            assert!(letter.since.is_some_and(|time| time > 1_700_000_000));
        }
    }
    let fate = |letter: &DeadLetter| match letter.message.id.as_str() {
        "one" => Fate::Replay,
        "two" => Fate::Drop,
        _ => Fate::Keep,
    };
    let done = dead.each(fate).await.unwrap();
    let expected = Done { seen: 3, replayed: vec!["one".into()], dropped: vec!["two".into()], ..Done::default() };
    assert_eq!(done, expected);
    let again = subscription.next().await.unwrap();
    assert_eq!(again.message, message("a.b", "one"), "as it was published, its type too");
    again.ack().await.unwrap();
    let left: Vec<_> = look().await.into_iter().map(|letter| letter.message.id).collect();
    assert_eq!(left, ["three"]);
    // It can become a letter again, and be replayed again.
    dead.each(|_| Fate::Replay).await.unwrap();
    for _ in 0..2 {
        drop(subscription.next().await.unwrap());
    }
    eventually("it is a letter again", || async { (look().await.len() == 1).then_some(()) }).await;
    // Its queue has gone: it stays.
    drop(subscription);
    let session = bus.consuming().session().await.unwrap();
    let name = topology::queue_name(&config, "q");
    let delete = session.channel().await.unwrap();
    delete.queue_delete(name.as_str().into(), lapin::options::QueueDeleteOptions::default()).await.unwrap();
    let done = dead.each(|_| Fate::Replay).await.unwrap();
    assert!(done.replayed.is_empty() && done.refused[0].1.contains(&name), "{done:?}");
    assert_eq!(look().await.len(), 1);
    bus.publish(message("a.b", "last")).await.unwrap();
    assert_eq!(beside.next().await.unwrap().message.id, "last", "nothing that was replayed came here");
    dead.close().await;
    bus.remove_everything().await.unwrap();
}

#[tokio::test]
async fn letters_of_a_deployment_that_is_not_there_are_refused_and_nothing_is_made() {
    let dead = DeadLetters::open(config("nowhere")).await.unwrap();
    for _ in 0..2 {
        let error = dead.each(|_| Fate::Drop).await.unwrap_err().to_string();
        assert!(error.contains("another deployment's"), "{error}");
    }
    dead.close().await;
}
