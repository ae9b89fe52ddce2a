//! What rings and signals cost where no other CPU has the cache lines: both ends in one thread.
//! `cargo bench -p vbus`. Both ends on CPUs of their own: `alacrity bench ring`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vbus::abi::SignalPair;
use vbus::memory::Region;
use vbus::ring::{Geometry, North, Slot, South};
use vbus::signal::{Side, attach};

const NUM_SLOTS: u32 = 256;

fn ring() -> (North, South) {
    let geometry = Geometry::new(NUM_SLOTS).unwrap();
    let region = Region::new_private(geometry.len_bytes()).unwrap();
    let north = North::create(region.clone(), geometry).unwrap();
    (north, South::attach(region).unwrap())
}

fn round_trip(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    for batch in [1_usize, 8, 32] {
        group.throughput(Throughput::Elements(batch as u64));
        let slots = vec![Slot::default(); batch];
        let mut taken = slots.clone();
        let (mut north, mut south) = ring();
        group.bench_function(
            BenchmarkId::new("publish, take, give back, reclaim", batch),
            |b| {
                b.iter(|| {
                    north.publish(black_box(&slots));
                    south.take(&mut taken).unwrap();
                    south.give_back(NUM_SLOTS);
                    north.reclaim().unwrap()
                });
            },
        );
        let (mut north, mut south) = ring();
        group.bench_function(
            BenchmarkId::new("publish, take, give back filled, reap", batch),
            |b| {
                b.iter(|| {
                    north.publish(black_box(&slots));
                    south.take(&mut taken).unwrap();
                    south.give_back_filled(black_box(&slots));
                    north.reap(&mut taken).unwrap()
                });
            },
        );
    }
    group.finish();
}

fn signals(criterion: &mut Criterion) {
    let region = Region::new_private(size_of::<SignalPair>()).unwrap();
    let (sender, _) = attach(region.clone(), 0, Side::North).unwrap();
    let (_, receiver) = attach(region, 0, Side::South).unwrap();
    let mut group = criterion.benchmark_group("signal");
    group.bench_function("inject, told already", |b| {
        receiver.disable();
        let _ = sender.inject();
        b.iter(|| sender.inject());
    });
    group.bench_function("inject, sleeper", |b| {
        let to_sleep = || {
            receiver.disable();
            receiver.enable()
        };
        b.iter_batched(to_sleep, |_| sender.inject(), BatchSize::PerIteration);
    });
    group.bench_function("disable, enable", |b| {
        b.iter(|| {
            receiver.disable();
            receiver.enable()
        });
    });
    group.finish();
}

criterion_group!(benches, round_trip, signals);
criterion_main!(benches);
