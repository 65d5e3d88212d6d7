//! A driver and a backend that do what they must not.

use super::*;

#[test]
fn a_request_beyond_what_the_backend_takes_is_answered_by_the_device() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let mut ring = guest.backend.ring(1);
    let largest = (1 << 20) + (128 << 10);
    for (sizes, refused) in [
        ((40, largest - 40), false),
        ((largest - 16, 16), false),
        ((40, largest - 39), true),
        ((largest, 16), true),
        ((40, 60 << 20), true),
    ] {
        let head = guest.request_of(sizes);
        guest.kick();
        let taken = ring.take_all();
        if !refused {
            assert_eq!(taken.len(), 1);
            ring.answer(&taken[0], &[1; 16]);
            guest.call();
        }
        assert_eq!(taken.is_empty(), refused, "{sizes:?}");
        assert_eq!(guest.drivers[1].take_used(), [(head, 16)]);
    }
}

#[test]
fn chains_that_are_no_requests_do_not_reach_the_backend() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let mut ring = guest.backend.ring(1);
    let chains: [&[_]; 5] = [
        &[(REQUEST, 15, 0), (ANSWER, 0x100, WRITE)],
        &[(ANSWER, 0x100, WRITE)],
        &[(ANSWER, 0x100, WRITE), (REQUEST, 40, 0)],
        &[(1 << 40, 40, 0), (ANSWER, 0x100, WRITE)],
        &[(REQUEST, 40, 0), (1 << 40, 0x100, WRITE)],
    ];
    let heads = chains.map(|chain| guest.drivers[1].add(chain));
    guest.kick();
    assert_eq!(guest.drivers[1].take_used(), heads.map(|head| (head, 0)));
    assert_eq!(ring.take_all().len(), 0);
}

#[test]
fn a_driver_that_takes_its_buffers_away_gets_what_fits() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let mut ring = guest.backend.ring(1);
    let head = guest.request(1);
    guest.kick();
    // What the descriptors say now does not matter any more.
    let elsewhere = crate::devices::virtio::testing::Descriptor {
        address: 1 << 40,
        length: u32::MAX,
        flags: WRITE,
        next: 0,
    };
    guest.drivers[1].store(head + 1, elsewhere);
    let taken = ring.take_all();
    ring.answer(&taken[0], &[3; 0x100]);
    guest.call();
    assert_eq!(guest.drivers[1].take_used(), [(head, 0x100)]);
    assert_eq!(
        guest.memory.read_obj::<u8>(GuestAddress(ANSWER + 0xFF)).unwrap(),
        3
    );
    assert_eq!(
        guest.memory.read_obj::<u8>(GuestAddress(ANSWER + 0x100)).unwrap(),
        0
    );
}

/// What a backend does with the requests that it has.
type Lie = fn(&mut ring::ModelRing, &[ring::Taken]);

#[test]
fn a_backend_that_lies_is_given_up_and_its_requests_fail() {
    let lies: [(&str, Lie); 7] = [
        ("no such head", |ring, _| ring.put_used(200, 16)),
        ("a number beyond 16 bits", |ring, _| ring.put_used(1 << 17, 16)),
        ("a descriptor that no request begins with", |ring, taken| {
            ring.put_used(taken[0].head + 1, 16);
        }),
        ("a slot that it does not have", |ring, _| ring.put_used(100, 16)),
        ("more than there is room for", |ring, taken| {
            ring.put_used(taken[0].head, taken[0].answer.1 + 1);
        }),
        ("an index beyond all that it has", |ring, _| ring.set_used(65)),
        ("an index that went back", |ring, _| ring.set_used(u16::MAX)),
    ];
    for (lie, tell) in lies {
        let mut guest = Guest::new(Behaviour::Good);
        guest.start();
        let mut ring = guest.backend.ring(1);
        let heads = [guest.request(1), guest.request(2)];
        guest.kick();
        let taken = ring.take_all();
        tell(&mut ring, &taken);
        guest.call();
        assert_eq!(
            guest.drivers[1].take_used(),
            heads.map(|head| (head, 16)),
            "{lie}"
        );
        assert_eq!(guest.answer(), (16, -5, 2), "{lie}");
        let later = guest.request(3);
        guest.kick();
        assert_eq!(guest.drivers[1].take_used(), [(later, 16)], "{lie}");
        guest.backend.ended();
    }
}

#[test]
fn one_answer_twice_is_a_lie_as_well() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let mut ring = guest.backend.ring(1);
    let heads = [guest.request(1), guest.request(2)];
    guest.kick();
    let taken = ring.take_all();
    ring.answer(&taken[0], &[7; 16]);
    ring.put_used(taken[0].head, 16);
    guest.call();
    assert_eq!(
        guest.drivers[1].take_used(),
        [(heads[0], 16), (heads[1], 16)],
        "each is answered once"
    );
    assert_eq!(guest.answer(), (16, -5, 2));
}

#[test]
fn calls_without_answers_do_nothing() {
    let mut guest = Guest::new(Behaviour::Good);
    guest.start();
    let head = guest.request(1);
    guest.kick();
    guest.call();
    guest.call();
    assert_eq!(guest.drivers[1].take_used(), []);
    guest.backend.die();
    guest.turn();
    assert_eq!(guest.drivers[1].take_used(), [(head, 16)]);
}
