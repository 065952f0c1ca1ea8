use super::*;

fn one(value: Content) -> std::iter::Once<Content> {
    std::iter::once(value)
}

fn cut(model: &Model, time: u64) -> Vec<Content> {
    let mut out = Vec::new();
    model.allowed_after_cut(time, 0, 0, &mut out);
    out
}

#[test]
fn a_completed_write_is_the_only_readable_value() {
    let mut model = Model::new(&[1], &[]);
    let w = model.begin_write(2, 0, one(7));
    assert!(model.read(1, 3, 0, 1).is_ok() && model.read(3, 4, 0, 7).is_ok());
    assert!(model.read(5, 6, 0, 1).is_err(), "a later read must not go back");
    model.end(8, w, false);
    assert!(model.read(9, 10, 0, 7).is_ok());
    assert_eq!(model.read(9, 10, 0, 1).expect_err("stale").allowed, [7]);
}

#[test]
fn concurrent_writes_settle_on_one() {
    let mut model = Model::new(&[1], &[]);
    let (a, b) = (model.begin_write(2, 0, one(7)), model.begin_write(3, 0, one(8)));
    model.end(4, a, false);
    model.end(5, b, false);
    assert!(model.read(6, 7, 0, 7).is_ok());
    assert!(model.read(8, 9, 0, 8).is_err(), "settled on 7");
    assert!(model.read(8, 9, 0, 7).is_ok());
}

#[test]
fn a_flush_covers_what_completed_before_it_began() {
    let mut model = Model::new(&[1], &[]);
    let a = model.begin_write(2, 0, one(7));
    model.end(4, a, false);
    let b = model.begin_write(5, 0, one(8));
    model.flushed(9, 6);
    assert_eq!(cut(&model, 8), [1, 7, 8]);
    assert_eq!(cut(&model, 9), [7, 8]);
    model.end(10, b, true);
    assert_eq!(cut(&model, 9), [7, 8]);
    assert_eq!(cut(&model, 10), [8]);
}

#[test]
fn a_discard_is_old_or_zero_and_stays() {
    let mut model = Model::new(&[1], &[]);
    let d = model.begin_discard(2, 0..1);
    model.end(3, d, false);
    model.flushed(6, 5);
    assert_eq!(cut(&model, 7), [1, ZERO]);
    assert!(model.read(8, 9, 0, ZERO).is_ok());
    assert!(model.read(10, 11, 0, 1).is_err(), "decided");
    assert_eq!(cut(&model, 12), [ZERO]);
}

#[test]
fn a_failed_close_keeps_only_what_was_flushed() {
    let mut model = Model::new(&[1], &[]);
    let w = model.begin_write(2, 0, one(7));
    model.end(3, w, false);
    model.lost();
    model.flushed(6, 5);
    assert_eq!(cut(&model, 7), [1, 7]);
    assert!(model.read(8, 9, 0, 1).is_ok());
}

fn sizes(model: &Model, time: u64) -> Vec<u64> {
    model.sizes_after_cut(time).into_iter().map(|(size, _)| size).collect()
}

#[test]
fn a_disk_grows_by_zeroes_before_or_after() {
    let mut model = Model::new(&[1], &[]);
    let grow = model.begin_resize(2, 3);
    assert_eq!((sizes(&model, 1), sizes(&model, 2)), (vec![1], vec![1, 3]));
    assert_eq!(model.shortest(3), 1);
    model.end(4, grow, false);
    model.flushed(7, 6);
    assert_eq!((sizes(&model, 8), model.shortest(8)), (vec![3], 3));
    assert!(model.read_size(9, 10, 1).is_err() && model.read_size(9, 10, 3).is_ok());
    assert!(model.read(9, 10, 2, ZERO).is_ok());
}

#[test]
fn what_fell_off_a_disk_does_not_come_back() {
    let mut model = Model::new(&[1, 2], &[]);
    let cut = |model: &Model, time, size| {
        let mut out = Vec::new();
        model.allowed_after_cut(time, 1, size, &mut out);
        out
    };
    let shrink = model.begin_resize(2, 1);
    assert_eq!(cut(&model, 3, 0), [2], "the old length, so all of the old disk");
    model.end(4, shrink, true);
    let grow = model.begin_resize(5, 2);
    model.end(6, grow, true);
    assert_eq!((sizes(&model, 7), cut(&model, 7, 2)), (vec![2], vec![ZERO]));
    assert!(model.read(8, 9, 1, 2).is_err() && model.read(8, 9, 1, ZERO).is_ok());
}

#[test]
fn a_snapshot_is_of_one_moment_and_comes_back_as_a_whole() {
    let mut model = Model::new(&[1, 2], &[]);
    let making = model.begin_snapshot(2);
    let lists = |model: &Model, time| model.lists_after_cut(time).map(<[usize]>::len).collect::<Vec<_>>();
    assert_eq!(lists(&model, 3), [0, 1]);
    model.keep(2, 4);
    model.end(4, making, true);
    assert_eq!((lists(&model, 5), model.kept(0).of(1)), (vec![1], &[2][..]));
    let w = model.begin_write(6, 0, [7, 8].into_iter());
    model.end(7, w, true);
    let apply = model.begin_apply(8, 0);
    let of = |model: &Model, size| {
        let mut out = Vec::new();
        (0..2).for_each(|sector| model.allowed_after_cut(9, sector, size, &mut out));
        out
    };
    assert_eq!((sizes(&model, 9), of(&model, 0), of(&model, 1)), (vec![2, 2], vec![7, 8], vec![1, 2]));
    model.end(10, apply, true);
    assert!(model.read(11, 12, 0, 7).is_err() && model.read(11, 12, 0, 1).is_ok());
}

#[test]
fn a_failed_write_is_old_or_new() {
    let mut model = Model::new(&[1], &[]);
    let w = model.begin_write(2, 0, one(7));
    model.fail(3, w);
    assert!(model.read(4, 5, 0, 1).is_ok());
    assert!(model.read(6, 7, 0, 7).is_err(), "it was old");
}
