//! Scenes of disks: one is copied, or has no room.

use std::time::Duration;

use forebay_runtime::random::Random;

use super::{Scenes, Target, ms, pick};
use crate::copies;
use crate::host::{Harm, HostId, Order, Role, folder};

impl Scenes<'_> {
    pub(super) async fn copied_disk(&self, target: &Target) {
        let Some(original) = pick(&target.replicas, &self.random) else {
            return;
        };
        let disk = || self.world.disks.get(&folder(original.number));
        let calm = self.world.network.is_calm() && self.world.running().contains(&original);
        let Some(image) = disk().map(|disk| disk.image()) else {
            return;
        };
        match self.random.range(0, 3) {
            // Beside the node, which has gone on since the copy was made.
            0 if calm => {
                tokio::time::sleep(ms(1, 2_000, &self.random)).await;
                copies::start(self.world, original, image);
            }
            // In its place: an orderly stop says how far the disk had come.
            1 if calm => {
                tokio::time::sleep(ms(100, 3_000, &self.random)).await;
                let down = Duration::from_secs(9);
                self.order(original, Order::Stop { down });
                tokio::time::sleep(Duration::from_secs(6)).await;
                copies::start(self.world, original, image);
            }
            // Both at the same time, after an end that left two equal disks.
            _ => {
                let harm = if self.chance(2) { Harm::None } else { Harm::Power };
                let down = ms(20, 600, &self.random);
                self.order(original, Order::Kill { harm, down });
                tokio::time::sleep(Duration::from_millis(1)).await;
                let near = down.saturating_sub(ms(0, 10, &self.random));
                let image = disk().map(|disk| disk.image());
                tokio::time::sleep(near).await;
                if let Some(image) = image {
                    copies::start(self.world, original, image);
                }
                if self.chance(2) {
                    return self.other_copy(target, original).await;
                }
            }
        }
        tokio::time::sleep(ms(500, 6_000, &self.random)).await;
        self.retire_copies().await;
    }

    /// One of two disks has become the node and goes, so that the other one tries again. It would be a
    /// witness who lacks what the first was given: of the other replicas one lags and one is not heard.
    async fn other_copy(&self, target: &Target, original: HostId) {
        let (network, owner) = (&self.world.network, target.owner);
        tokio::time::sleep(ms(300, 2_500, &self.random)).await;
        let mut others = target.replicas.clone();
        others.retain(|id| *id != original);
        if let [lagging, silent, ..] = others.as_slice() {
            network.block(&owner.to_string(), &lagging.to_string());
            tokio::time::sleep(ms(100, 1_500, &self.random)).await;
            self.others(owner)
                .into_iter()
                .for_each(|other| self.apart(*silent, other));
        }
        let down = ms(4_000, 8_000, &self.random);
        self.order(
            owner,
            Order::Kill {
                harm: Harm::None,
                down,
            },
        );
        copies::retire(self.world, self.hosts);
        self.taken_over(target, Duration::from_millis(4_500)).await;
        self.retire_copies().await;
    }

    async fn retire_copies(&self) {
        copies::retire(self.world, self.hosts);
        self.until(Duration::from_secs(20), || !self.world.has_copies())
            .await;
    }

    pub(super) async fn full_disk(&self) {
        let mut nodes = self.all(Role::Storage);
        if !self.chance(3) {
            nodes = pick(&nodes, &self.random).into_iter().collect();
        }
        for id in &nodes {
            let free = self.random.range(0, 6 << 20);
            if let Some(disk) = self.world.disks.get(&folder(id.number)) {
                tracing::info!(target: "sim", host = %id, free, "little room is left");
                disk.set_free(free);
            }
        }
        tokio::time::sleep(ms(1_000, 9_000, &self.random)).await;
        self.give_room();
    }

    /// All disks have room.
    pub fn give_room(&self) {
        for id in self.all(Role::Storage) {
            if let Some(disk) = self.world.disks.get(&folder(id.number)) {
                disk.set_free(1 << 40);
            }
        }
    }
}
