//! The feed's promises: every image once an epoch, another order in each, the same whatever the batches.

use std::collections::HashSet;

use candle_core::Device;
use ddpm_data::{Dataset, Drawn, Feed};
use ddpm_image::PixelMap;

/// `n` images of 1 row, 3 columns and 2 channels; image i is 6i, 6i+1, ... 6i+5.
fn numbered(n: usize) -> Dataset {
    let pixels = (0..n * 6).map(|value| value as u8).collect();
    Dataset::new("numbered", pixels, (1, 3, 2), None, vec![]).unwrap()
}

fn indices(feed: &Feed, position: u64, count: usize) -> Vec<usize> {
    feed.draws(position, count)
        .unwrap()
        .iter()
        .map(|drawn| drawn.index)
        .collect()
}

fn bytes(feed: &Feed, position: u64, count: usize) -> Vec<u8> {
    let map = PixelMap::MinusOneToOne;
    map.to_u8(&feed.batch(position, count, &map, &Device::Cpu).unwrap())
        .unwrap()
}

#[test]
fn every_image_comes_once_an_epoch_and_each_epoch_differs() {
    for n in [1, 2, 3, 7, 16, 17, 41] {
        let data = numbered(n);
        let feed = Feed::new(&data, 17, true);
        let mut orders = HashSet::new();
        for epoch in 0..20 {
            let order = indices(&feed, epoch * n as u64, n);
            assert_eq!(
                order.iter().collect::<HashSet<_>>().len(),
                n,
                "epoch {epoch} of {n} images: {order:?}"
            );
            orders.insert(order);
        }
        assert!(
            n < 7 || orders.len() == 20,
            "{} orders in 20 epochs of {n} images",
            orders.len()
        );
    }
}

#[test]
fn seeds_differ_and_a_seed_repeats() {
    let data = numbered(41);
    let order = |seed| indices(&Feed::new(&data, seed, false), 0, 41);
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
    assert_ne!(order(1), (0..41).collect::<Vec<_>>());
}

/// Batches of any size, across the ends of epochs, are the same images in the same order.
#[test]
fn how_positions_are_split_into_batches_changes_nothing() {
    let data = numbered(7);
    let feed = Feed::new(&data, 3, true);
    let whole = bytes(&feed, 0, 30);
    let draws = feed.draws(0, 30).unwrap();
    for size in [1, 2, 5, 7, 8, 15] {
        let split: Vec<u8> = (0..30)
            .step_by(size)
            .flat_map(|at| bytes(&feed, at as u64, size.min(30 - at)))
            .collect();
        assert_eq!(split, whole, "batches of {size}");
    }
    for (position, &drawn) in draws.iter().enumerate() {
        assert_eq!(feed.draw(position as u64).unwrap(), drawn);
    }
}

#[test]
fn far_positions_are_positions_up_to_where_addresses_end() {
    let data = numbered(7);
    let feed = Feed::new(&data, 3, true);
    let end = 7 << 44;
    let last: HashSet<usize> = indices(&feed, end - 7, 7).into_iter().collect();
    assert_eq!(last.len(), 7);
    let message = feed.draw(end).unwrap_err().to_string();
    assert_eq!(
        message,
        format!("image {end} of the feed: step 17592186044416 has no noise: steps are below 2^44")
    );
    assert!(
        feed.batch(u64::MAX, 2, &PixelMap::MinusOneToOne, &Device::Cpu)
            .is_err()
    );
}

#[test]
fn a_mirrored_image_has_its_columns_in_reverse_and_its_channels_in_order() {
    let data = numbered(41);
    let feed = Feed::new(&data, 5, true);
    let (mut mirrored, mut plain) = (0, 0);
    for (at, Drawn { index, flip, .. }) in feed.draws(0, 41).unwrap().into_iter().enumerate() {
        let [a, b, c, d, e, f] = std::array::from_fn(|value| (index * 6 + value) as u8);
        let expected = if flip {
            [e, f, c, d, a, b]
        } else {
            [a, b, c, d, e, f]
        };
        assert_eq!(bytes(&feed, at as u64, 1), expected);
        if flip { mirrored += 1 } else { plain += 1 }
    }
    assert!(
        mirrored > 5 && plain > 5,
        "{mirrored} mirrored, {plain} plain"
    );
}

/// Mirroring is drawn anew for each image in each epoch, with probability 1/2, and leaves the order alone.
#[test]
fn mirroring_is_fair_and_leaves_the_order_alone() {
    let data = numbered(40);
    let (with, without) = (Feed::new(&data, 8, true), Feed::new(&data, 8, false));
    assert_eq!(indices(&with, 0, 400), indices(&without, 0, 400));
    assert!(
        without
            .draws(0, 400)
            .unwrap()
            .iter()
            .all(|drawn| !drawn.flip)
    );
    let n = 4000;
    let mirrored = with
        .draws(0, n)
        .unwrap()
        .iter()
        .filter(|drawn| drawn.flip)
        .count() as f64;
    // Binomial(4000, 1/2): mean 2000, standard deviation 31.6; five of them.
    assert!(
        (mirrored - 2000.0).abs() < 5.0 * 31.6,
        "{mirrored} of {n} mirrored"
    );
    let of_first = |epoch: u64| {
        with.draws(epoch * 40, 40)
            .unwrap()
            .into_iter()
            .find(|drawn| drawn.index == 0)
            .unwrap()
            .flip
    };
    assert_eq!((0..20).map(of_first).collect::<HashSet<_>>().len(), 2);
}
