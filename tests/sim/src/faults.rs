//! What goes wrong, when and where: all of it follows from the seed.
//!
//! Processes are killed with and without their machine, stopped in order, stalled, cut off in one
//! direction; messages to the metadata store are lost or late, leases end under healthy holders,
//! clocks jump, disks are slow, fail their syncs or vanish. At any time at most one storage node's
//! disk is lost for good: more than that no quorum survives.

use std::cell::Cell;
use std::time::Duration;

use forebay_runtime::random::{Random, SeededRandom};

use crate::copies;
use crate::host::{Harm, Host, HostId, Order, Role, folder};
use crate::network::{Delays, STORE};
use crate::objects::OBJECTS;
use crate::scenes::Scenes;
use crate::world::World;

/// One kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill(HostId, Harm),
    Stop(HostId),
    Stall(HostId),
    OneWay(HostId, HostId),
    Apart(HostId, HostId),
    StoreOneWay(HostId),
    StoreAway,
    StoreLoss,
    Lease,
    SlowDisk(HostId),
    SlowNetwork,
    ClockJump(HostId),
    ObjectsAway,
    ObjectsFail,
    FailedSync(HostId),
    AllBrokers,
    AllNodes,
    /// A broker that is taken for dead and lives on, and storage nodes that restart meanwhile.
    Zombie(HostId),
}

/// Breaks things until told to end, then mends everything.
pub struct Troublemaker<'a> {
    world: &'a World,
    hosts: &'a [Host],
    random: SeededRandom,
    /// Kinds of trouble that this seed makes, one bit each: few kinds often find what many do not.
    kinds: u64,
    /// Longest pause between two, in ms.
    pause_ms: u64,
    /// A disk of this run has lost something already.
    lost: Cell<bool>,
}

impl<'a> Troublemaker<'a> {
    /// Trouble for these hosts.
    #[must_use]
    pub fn new(world: &'a World, hosts: &'a [Host]) -> Self {
        let random = SeededRandom::stream(world.seed, 0xfa017);
        let kinds = match random.range(0, 3) {
            0 => u64::MAX,
            _ => random.u64() | 1,
        };
        let pause_ms = match random.range(0, 3) {
            0 => 150,
            1 => 600,
            _ => 2_500,
        };
        Self {
            world,
            hosts,
            kinds,
            pause_ms,
            lost: Cell::new(world.options.nodes < 4),
            random,
        }
    }

    /// Makes trouble for so long. What it began ends with it but for what ends by itself later.
    pub async fn run(&self, time: Duration) {
        let scenes = Scenes::new(self.world, self.hosts);
        let work = async {
            loop {
                let pause = self.random.range(10, self.pause_ms);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                if scenes.play(&self.lost).await && self.random.range(0, 3) > 0 {
                    continue;
                }
                let choice = self.random.range(0, 100);
                if self.kinds >> (choice / 4) & 1 == 0 {
                    continue;
                }
                let fault = self.choose(choice);
                tracing::info!(target: "sim", ?fault, "fault");
                let lasts = self.lasting();
                self.begin(fault, lasts).await;
            }
        };
        // Stopped wherever it is.
        let _ = tokio::time::timeout(time, work).await;
        self.mend();
    }

    /// Ends everything that does not end by itself.
    pub fn mend(&self) {
        tracing::info!(target: "sim", "all mended");
        self.world.network.unblock_all();
        self.world.network.release_news();
        self.world.network.lose_store_messages(0);
        self.world.network.set_delays(Delays::default());
        self.world.network.resume(STORE);
        self.world.network.resume(OBJECTS);
        self.world.objects.fail(0);
        Scenes::new(self.world, self.hosts).give_room();
        copies::retire(self.world, self.hosts);
        for host in self.hosts {
            self.world.network.resume(&host.id.to_string());
            self.world.slow_disk(host.id, 1);
        }
    }

    fn lasting(&self) -> Duration {
        // Mostly short, sometimes beyond every timeout.
        let most = if self.random.range(0, 4) == 0 {
            14_000
        } else {
            2_500
        };
        Duration::from_millis(self.random.range(20, most))
    }

    fn of(&self, role: Role) -> HostId {
        let all: Vec<_> = self.hosts.iter().filter(|host| host.id.role == role).collect();
        let at = self.random.range(0, all.len() as u64) as usize;
        all.get(at).map_or(HostId { role, number: 1 }, |host| host.id)
    }

    fn any(&self) -> HostId {
        let role = match self.random.range(0, 5) {
            0 | 1 => Role::Broker,
            2 | 3 => Role::Storage,
            _ => Role::Proxy,
        };
        self.of(role)
    }

    fn choose(&self, choice: u64) -> Fault {
        match choice {
            0..14 => Fault::Kill(self.of(Role::Broker), Harm::None),
            14..24 => self.kill_node(),
            24..26 => Fault::Kill(self.of(Role::Proxy), Harm::None),
            26..28 => Fault::Zombie(self.of(Role::Broker)),
            28..33 => Fault::Stop(self.of(Role::Broker)),
            33..36 => Fault::Stop(self.of(Role::Storage)),
            36..48 => Fault::Stall(self.any()),
            48..58 => Fault::OneWay(self.any(), self.any()),
            58..64 => Fault::Apart(self.any(), self.any()),
            64..70 => Fault::StoreOneWay(self.any()),
            70..73 => Fault::StoreAway,
            73..78 => Fault::StoreLoss,
            78..82 => Fault::Lease,
            82..87 => Fault::SlowDisk(self.of(Role::Storage)),
            87..91 => Fault::SlowNetwork,
            91..92 => Fault::ClockJump(self.any()),
            92..94 => Fault::ObjectsAway,
            94..96 => Fault::ObjectsFail,
            96..97 => Fault::FailedSync(self.of(Role::Storage)),
            97..98 => Fault::AllBrokers,
            _ => Fault::AllNodes,
        }
    }

    /// One storage node with or without its machine; once in a run, with its disk.
    fn kill_node(&self) -> Fault {
        let harm = match self.random.range(0, 6) {
            0 | 1 if !self.lost.replace(true) => Harm::Wipe,
            2 if !self.lost.replace(true) => Harm::Rot,
            0..3 => Harm::None,
            _ => Harm::Power,
        };
        Fault::Kill(self.of(Role::Storage), harm)
    }

    fn order(&self, id: HostId, order: Order) {
        if let Some(host) = self.hosts.iter().find(|host| host.id == id) {
            host.order(order);
        }
    }

    async fn begin(&self, fault: Fault, lasts: Duration) {
        let (world, network) = (self.world.clone(), self.world.network.clone());
        let down = lasts.min(Duration::from_secs(6));
        match fault {
            Fault::Kill(host, harm) => self.order(host, Order::Kill { harm, down }),
            Fault::Stop(host) => self.order(host, Order::Stop { down }),
            Fault::AllBrokers | Fault::AllNodes => {
                let role = if fault == Fault::AllNodes {
                    Role::Storage
                } else {
                    Role::Broker
                };
                for host in self.hosts.iter().filter(|host| host.id.role == role) {
                    host.order(Order::Kill {
                        harm: Harm::Power,
                        down,
                    });
                }
            }
            Fault::Zombie(host) => self.zombie(host).await,
            Fault::Stall(host) => {
                network.stall(&host.to_string());
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    network.resume(&host.to_string());
                });
            }
            Fault::OneWay(from, to) => {
                network.block(&from.to_string(), &to.to_string());
                self.unblock_after(lasts).await;
            }
            Fault::Apart(one, other) => {
                network.block(&one.to_string(), &other.to_string());
                network.block(&other.to_string(), &one.to_string());
                self.unblock_after(lasts).await;
            }
            Fault::StoreOneWay(host) => {
                if self.random.range(0, 2) == 0 {
                    network.block(&host.to_string(), STORE);
                } else {
                    network.block(STORE, &host.to_string());
                }
                self.unblock_after(lasts).await;
            }
            Fault::StoreAway => {
                network.stall(STORE);
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    network.resume(STORE);
                });
            }
            Fault::ObjectsAway => {
                network.stall(OBJECTS);
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    network.resume(OBJECTS);
                });
            }
            Fault::ObjectsFail => {
                let objects = world.objects.clone();
                objects.fail(self.random.range(2, 12));
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    objects.fail(0);
                });
            }
            Fault::StoreLoss => {
                network.lose_store_messages(self.random.range(2, 10));
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    network.lose_store_messages(0);
                });
            }
            Fault::Lease => {
                let leases = world.store.leases();
                let at = self.random.range(0, leases.len() as u64) as usize;
                if let Some((lease, keys)) = leases.get(at) {
                    tracing::info!(target: "sim", %lease, ?keys, "lease ended under its holder");
                    world.store.end_lease(*lease);
                }
            }
            Fault::SlowDisk(host) => {
                world.slow_disk(host, self.random.range(10, 3_000));
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    world.slow_disk(host, 1);
                });
            }
            Fault::SlowNetwork => {
                network.set_delays(Delays {
                    least_us: 1_000,
                    spread_us: self.random.range(2_000, 200_000),
                    slow_one_in: 20,
                    slow_us: 1_500_000,
                });
                tokio::spawn(async move {
                    tokio::time::sleep(lasts).await;
                    network.set_delays(Delays::default());
                });
            }
            Fault::ClockJump(host) => {
                let far = self.random.range(0, 7_200_000);
                world.jump_clock(host, i64::try_from(far).unwrap_or_default() - 3_600_000);
            }
            Fault::FailedSync(host) => {
                if let Some(disk) = world.disks.get(&folder(host.number)) {
                    disk.fail_syncs();
                    // What the kernel dropped with the failed sync is gone after a restart.
                    tokio::time::sleep(down).await;
                    self.order(
                        host,
                        Order::Kill {
                            harm: Harm::Power,
                            down,
                        },
                    );
                }
            }
        }
    }

    /// Cuts a broker off from all but clients and the metadata store until another one has taken over,
    /// lets storage nodes restart, and lets it speak again.
    async fn zombie(&self, zombie: HostId) {
        let network = &self.world.network;
        let me = zombie.to_string();
        for host in self.hosts.iter().filter(|host| host.id != zombie) {
            if host.id.role != Role::Proxy {
                network.block(&me, &host.id.to_string());
                network.block(&host.id.to_string(), &me);
            }
        }
        tokio::time::sleep(Duration::from_millis(self.random.range(2_000, 6_000))).await;
        let down = Duration::from_millis(self.random.range(50, 400));
        for host in self.hosts.iter().filter(|host| host.id.role == Role::Storage) {
            if self.random.range(0, 4) > 0 {
                host.order(Order::Kill {
                    harm: Harm::Power,
                    down,
                });
            }
        }
        tokio::time::sleep(down + Duration::from_millis(self.random.range(100, 3_000))).await;
        network.unblock_all();
    }

    /// Partitions end together, some time after the newest.
    async fn unblock_after(&self, lasts: Duration) {
        let network = self.world.network.clone();
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            network.unblock_all();
        });
        if self.random.range(0, 3) == 0 {
            tokio::time::sleep(lasts).await;
        }
    }
}
