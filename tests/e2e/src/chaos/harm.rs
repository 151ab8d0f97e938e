//! What is done to the deployment. The plan follows from the seed alone; what it meets does not.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{LEASE, POOL, POOL_LEASE, Surroundings};
use crate::processes::{Deployment, SERVICES};

/// One harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Harm {
    /// `kill -9` of a replica, and started again after a while.
    KillService(&'static str, usize, Duration),
    /// SIGSTOP of a replica, and SIGCONT after a while: it comes back and thinks that no time has passed.
    PauseService(&'static str, usize, Duration),
    /// The same with the replica of job-svc that schedules the pool, for longer than its lease.
    PauseOwner(Duration),
    /// `kill -9` of the agent of a node.
    KillAgent(usize),
    /// An agent stands still, for less than its lease or for longer.
    PauseAgent(usize, Duration),
    /// The connection of an agent says nothing any more, for longer than the lease.
    SilenceAgent(usize, Duration),
    /// All connections of agents to a service are cut, and new ones refused, for a while.
    CutAgents(usize, Duration),
    /// `kill -9` of the broker, and started again.
    KillBroker(Duration),
    /// The broker is asked to end, and started again.
    StopBroker(Duration),
    /// `kill -9` of PostgreSQL, and started again.
    KillDatabase(Duration),
    /// PostgreSQL is asked to end at once, and started again.
    StopDatabase(Duration),
    /// The disk of PostgreSQL is full for a while.
    FillDisk(Duration),
    /// All connections to the broker are cut, and new ones refused, for a while.
    CutBroker(Duration),
}

/// A harm and the time before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Pause since the one before.
    pub after: Duration,
    /// What is done.
    pub harm: Harm,
}

impl Harm {
    /// What it is, without whom it meets.
    pub fn name(&self) -> &'static str {
        match self {
            Self::KillService(..) => "kill_service",
            Self::PauseService(..) => "pause_service",
            Self::KillAgent(_) => "kill_agent",
            Self::PauseAgent(..) => "pause_agent",
            Self::SilenceAgent(..) => "silence_agent",
            Self::CutAgents(..) => "cut_agents",
            Self::KillBroker(_) => "kill_broker",
            Self::StopBroker(_) => "stop_broker",
            Self::KillDatabase(_) => "kill_database",
            Self::StopDatabase(_) => "stop_database",
            Self::FillDisk(_) => "fill_disk",
            Self::PauseOwner(_) => "pause_owner",
            Self::CutBroker(_) => "cut_broker",
        }
    }

    /// How long it takes itself.
    pub fn takes(&self) -> Duration {
        match self {
            Self::KillService(_, _, away)
            | Self::PauseService(_, _, away)
            | Self::PauseOwner(away)
            | Self::StopBroker(away)
            | Self::StopDatabase(away)
            | Self::FillDisk(away)
            | Self::PauseAgent(_, away)
            | Self::CutAgents(_, away)
            | Self::KillBroker(away)
            | Self::KillDatabase(away)
            | Self::CutBroker(away) => *away,
            // Others go on meanwhile.
            Self::SilenceAgent(..) | Self::KillAgent(_) => Duration::ZERO,
        }
    }
}

/// What may be harmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Targets {
    /// Nodes of the pool.
    pub nodes: usize,
    /// Whether the broker belongs to this deployment alone.
    pub broker: bool,
    /// Whether there is a PostgreSQL, which does.
    pub database: bool,
    /// Whether its disk may be filled.
    pub disk: bool,
    /// Processes of each service.
    pub replicas: usize,
}

/// Every harm that there is, in turn: each process of each service, then what they stand on.
pub fn drill(targets: Targets) -> Vec<Step> {
    let (short, second) = (Duration::from_millis(300), Duration::from_secs(1));
    // PostgreSQL ends the connection of a replica that stands still, and its turn, after 5 s.
    let turn = Duration::from_secs(7);
    let replicas = || 0..targets.replicas.max(1);
    let each = |harm: &dyn Fn(&'static str, usize) -> Harm| -> Vec<Harm> {
        SERVICES
            .into_iter()
            .flat_map(|service| replicas().map(move |replica| (service, replica)))
            .map(|(service, replica)| harm(service, replica))
            .collect()
    };
    let mut harms = each(&|service, replica| Harm::KillService(service, replica, short));
    harms.extend([Harm::CutAgents(0, second), Harm::CutAgents(1, second), Harm::CutBroker(second)]);
    if targets.broker {
        harms.extend([Harm::StopBroker(second), Harm::KillBroker(short)]);
    }
    if targets.database {
        harms.extend([Harm::StopDatabase(second), Harm::KillDatabase(short)]);
    }
    let long = LEASE + LEASE / 2;
    harms.extend([Harm::SilenceAgent(0, long), Harm::PauseAgent(1, long), Harm::KillAgent(2)]);
    harms.extend([Harm::PauseOwner(POOL_LEASE * 2), Harm::PauseOwner(POOL_LEASE * 2)]);
    harms.extend(each(&|service, replica| {
        Harm::PauseService(service, replica, if service == "pool-svc" { turn } else { POOL_LEASE + second })
    }));
    if targets.disk {
        harms.push(Harm::FillDisk(second * 4));
    }
    harms.into_iter().map(|harm| Step { after: second, harm }).collect()
}

/// The plan of a seed.
pub fn schedule(seed: u64, kills: usize, targets: Targets) -> Vec<Step> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..kills)
        .map(|_| Step { after: Duration::from_millis(random.random_range(50..900)), harm: one(&mut random, targets) })
        .collect()
}

fn one(random: &mut StdRng, targets: Targets) -> Harm {
    let mut millis = |range: std::ops::Range<u64>| Duration::from_millis(random.random_range(range));
    let (short, long, silence) = (millis(0..800), millis(200..3000), LEASE + millis(500..4000));
    let under_lease = Duration::from_millis(random.random_range(100..LEASE.as_millis() as u64 / 2));
    let still = if silence.as_millis() % 2 == 0 { under_lease } else { silence };
    let service = SERVICES[random.random_range(0..SERVICES.len())];
    let node = random.random_range(0..targets.nodes);
    // From what was drawn already: another draw would change the plans of all seeds.
    let replica = usize::try_from(short.as_millis()).unwrap_or(0) % targets.replicas.max(1);
    let in_order = long.as_millis().is_multiple_of(2);
    match random.random_range(0..100) {
        0..38 => Harm::KillService(service, replica, short),
        38..52 => Harm::PauseService(service, replica, long),
        52..66 => Harm::KillAgent(node),
        66..73 => Harm::PauseAgent(node, still),
        73..80 => Harm::SilenceAgent(node, silence),
        80..86 => Harm::CutAgents(node % 2, long),
        86..90 if targets.broker && in_order => Harm::StopBroker(short),
        86..90 if targets.broker => Harm::KillBroker(short),
        90..97 if targets.database && in_order => Harm::StopDatabase(short),
        90..97 if targets.database => Harm::KillDatabase(short),
        _ => Harm::CutBroker(long),
    }
}

/// Does it. Whom it would meet may be gone already; then it meets nobody.
pub async fn carry_out(harm: &Harm, deployment: &mut Deployment, around: &mut Surroundings) {
    match harm {
        Harm::KillService(service, replica, away) => {
            deployment.kill_9(service, *replica).await;
            tokio::time::sleep(*away).await;
            deployment.start_again(service, *replica);
        }
        Harm::PauseService(service, replica, away) => {
            if let Some(pid) = deployment.pid(service, *replica) {
                pause(pid, *away).await;
            }
        }
        Harm::PauseOwner(away) => {
            let owner = around.owner(deployment, POOL).unwrap_or_default();
            if let Some(pid) = deployment.pid("job-svc", owner) {
                pause(pid, *away).await;
            }
        }
        Harm::KillAgent(node) => {
            if let Some(pid) = agent(deployment, *node) {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
        Harm::PauseAgent(node, away) => {
            if let Some(pid) = agent(deployment, *node) {
                pause(pid, *away).await;
            }
        }
        Harm::SilenceAgent(node, away) => super::proxy::silence(&around.agents[1], *node, *away),
        Harm::CutAgents(which, away) => {
            futures::future::join_all(around.agents[*which].iter().map(|proxy| proxy.cut(*away))).await;
        }
        Harm::KillBroker(away) => {
            if let Some(broker) = &mut around.broker {
                broker.restart(true, *away).await;
            }
        }
        Harm::StopBroker(away) => {
            if let Some(broker) = &mut around.broker {
                broker.restart(false, *away).await;
            }
        }
        Harm::StopDatabase(away) => {
            if let Some(database) = &mut around.database {
                database.restart(false, *away).await;
            }
        }
        Harm::FillDisk(away) => {
            if let Some(database) = &mut around.database {
                database.without_room(*away).await;
            }
        }
        Harm::KillDatabase(away) => {
            if let Some(database) = &mut around.database {
                database.restart(true, *away).await;
            }
        }
        Harm::CutBroker(away) => around.amqp.cut(*away).await,
    }
}

fn agent(deployment: &Deployment, node: usize) -> Option<nix::unistd::Pid> {
    let agents = deployment.agents();
    agents.values().nth(node % agents.len().max(1)).copied()
}

async fn pause(pid: nix::unistd::Pid, away: Duration) {
    if kill(pid, Signal::SIGSTOP).is_ok() {
        tokio::time::sleep(away).await;
        let _ = kill(pid, Signal::SIGCONT);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_always_makes_the_same_plan_and_plans_have_every_harm() {
        let all = Targets { nodes: 4, broker: true, database: true, disk: true, replicas: 2 };
        assert_eq!(schedule(7, 50, all), schedule(7, 50, all));
        assert_ne!(schedule(7, 50, all), schedule(8, 50, all));
        let names =
            |targets| -> BTreeSet<_> { schedule(1, 500, targets).iter().map(|step| step.harm.name()).collect() };
        assert_eq!(names(all).len(), 11, "{:?}", names(all));
        let shared = names(Targets { broker: false, database: false, ..all });
        assert!(!shared.contains("kill_broker") && !shared.contains("kill_database") && shared.contains("cut_broker"));
        let hit: BTreeSet<_> = schedule(1, 500, all)
            .into_iter()
            .filter_map(|step| match step.harm {
                Harm::KillService(service, replica, _) => Some((service, replica)),
                _ => None,
            })
            .collect();
        assert_eq!(hit.len(), 2 * SERVICES.len(), "every replica is killed: {hit:?}");
        let drilled: BTreeSet<_> = drill(all).iter().map(|step| step.harm.name()).collect();
        assert_eq!(drilled.len(), 13, "{drilled:?}");
    }
}
