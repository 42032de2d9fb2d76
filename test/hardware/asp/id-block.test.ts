/** LAUNCH_FINISH with an ID block: who signed what a guest has to be (reference facts.md 3.4), each field wrong on its own, and firmware's order. */
import { createHash, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { afterEach, describe, expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { CMD, type Field, hex, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const id = generateKeyPairSync('ec', { namedCurve: 'P-384' });
const author = generateKeyPairSync('ec', { namedCurve: 'P-384' });
const little = (base64: string | undefined): Buffer => Buffer.from(base64!, 'base64url').reverse();
const publicKey = (key: KeyObject): Buffer => {
  const bytes = Buffer.alloc(0x404);
  const { x, y } = key.export({ format: 'jwk' });
  bytes.writeUInt32LE(2, 0);
  little(x).copy(bytes, 4);
  little(y).copy(bytes, 0x4c);
  return bytes;
};
const signature = (message: Uint8Array, key: KeyObject): Buffer => {
  const raw = sign('sha384', message, { key, dsaEncoding: 'ieee-p1363' });
  const bytes = Buffer.alloc(512);
  Buffer.from(raw.subarray(0, 48)).reverse().copy(bytes, 0);
  Buffer.from(raw.subarray(48)).reverse().copy(bytes, 72);
  return bytes;
};
/** Digest of a guest with one SECRETS page at 0x2000. */
const DIGEST =
  'db3c7f4839ea105f9898622ca76eebb484cd8dfd0cad5d0d839faf5c13eb56c226cce911ddb9adddeb5a75af277ce951';

/** `changes`: [offset, what is XORed], before anything is signed. */
type Change = readonly [at: number, mask: number];
const change = (bytes: Uint8Array, ...changes: readonly Change[]): Buffer => {
  const changed = Buffer.from(bytes);
  for (const [at, mask] of changes) changed[at]! ^= mask;
  return changed;
};
const blockOf = (...changes: readonly Change[]): Buffer => {
  const block = Buffer.alloc(96);
  block.write(DIGEST, 0, 'hex');
  block.fill(0xfa, 0x30, 0x40);
  block.fill(0x1a, 0x40, 0x50);
  block.writeUInt32LE(1, 0x50);
  block.writeUInt32LE(7, 0x54);
  block.writeBigUInt64LE(0x30000n, 0x58);
  return change(block, ...changes);
};
const authOf = (block: Uint8Array, signers = { id, author }): Buffer => {
  const { id, author } = signers;
  const auth = Buffer.alloc(4096);
  auth.writeUInt32LE(1, 0);
  auth.writeUInt32LE(1, 4);
  signature(block, id.privateKey).copy(auth, 0x40);
  publicKey(id.publicKey).copy(auth, 0x240);
  signature(publicKey(id.publicKey), author.privateKey).copy(auth, 0x680);
  publicKey(author.publicKey).copy(auth, 0x880);
  return auth;
};

const ID_BLOCK = 1;
const AUTHOR_KEY = 2;
const BOTH = 3;
const BAD_SIGNATURE = 0x0a;
const BAD_MEASUREMENT = 0x0b;
const POLICY_FAILURE = 7;
const INVALID_PARAM = 0x16;
const INVALID_ADDRESS = 9;

/** That guest in state LAUNCH, active, and the two pages. */
function prepare(block: Uint8Array, auth: Uint8Array): { context: Spa; fields: (flags: number) => Field[] } {
  machine = new Machine().init();
  const context = machine.startGuest();
  machine.launchUpdate(context, machine.preGuestPage(0x2000), 5);
  const [blockPage, authPage] = [machine.page(), machine.page()];
  machine.memory.write(blockPage, block);
  machine.memory.write(authPage, auth);
  return {
    context,
    fields: (flags) => [
      [8, 8, blockPage],
      [16, 8, authPage],
      [0x18, 1, flags],
    ],
  };
}
function finish(block: Uint8Array, auth: Uint8Array, flags: number): number {
  const { context, fields } = prepare(block, auth);
  return machine.launchFinish(context, fields(flags));
}

const good = blockOf();
const goodAuth = authOf(good);

describe('an ID block', () => {
  it.each([
    ['block and author key in order', good, goodAuth, BOTH, 0],
    ['the ID key alone', good, goodAuth, ID_BLOCK, 0],
    ['nothing looked at', Buffer.alloc(96), Buffer.alloc(4096), 0, 0],
    ['an author key without a block: nothing looked at', Buffer.alloc(96), Buffer.alloc(4096), AUTHOR_KEY, 0],
    ['the first byte of another digest', change(good, [0, 1]), goodAuth, BOTH, BAD_MEASUREMENT],
    ['the last byte of another digest', change(good, [47, 0x80]), goodAuth, BOTH, BAD_MEASUREMENT],
    ['another policy', change(good, [0x58, 1]), goodAuth, BOTH, POLICY_FAILURE],
    ['another policy in its last byte', change(good, [0x5f, 0x80]), goodAuth, BOTH, POLICY_FAILURE],
    ['another family, not signed', change(good, [0x30, 1]), goodAuth, BOTH, BAD_SIGNATURE],
    ['another image, not signed', change(good, [0x4f, 1]), goodAuth, BOTH, BAD_SIGNATURE],
    ['another version, not signed', change(good, [0x50, 1]), goodAuth, BOTH, BAD_SIGNATURE],
    ['another SVN, not signed', change(good, [0x54, 1]), goodAuth, BOTH, BAD_SIGNATURE],
    ['version 0, signed', blockOf([0x50, 1]), authOf(blockOf([0x50, 1])), ID_BLOCK, 0],
    ['version 3, signed', blockOf([0x50, 2]), authOf(blockOf([0x50, 2])), ID_BLOCK, 0],
    ['ID key algorithm 0', good, change(goodAuth, [0, 1]), ID_BLOCK, INVALID_PARAM],
    ['ID key algorithm 3', good, change(goodAuth, [0, 2]), BOTH, INVALID_PARAM],
    ['ID key algorithm 0x01000001', good, change(goodAuth, [3, 1]), BOTH, INVALID_PARAM],
    ['author key algorithm 0', good, change(goodAuth, [4, 1]), BOTH, INVALID_PARAM],
    ['author key algorithm 0, without an author key', good, change(goodAuth, [4, 1]), ID_BLOCK, 0],
    ['a reserved byte behind the algorithms', good, change(goodAuth, [8, 1]), BOTH, 0],
    ['R of the block’s signature', good, change(goodAuth, [0x40, 1]), ID_BLOCK, BAD_SIGNATURE],
    ['S of the block’s signature', good, change(goodAuth, [0x88, 1]), ID_BLOCK, BAD_SIGNATURE],
    ['R of more than 48 bytes', good, change(goodAuth, [0x70, 1]), ID_BLOCK, BAD_SIGNATURE],
    ['S of more than 48 bytes', good, change(goodAuth, [0xcf, 1]), ID_BLOCK, BAD_SIGNATURE],
    ['curve 3 of the ID key', good, change(goodAuth, [0x240, 1]), ID_BLOCK, BAD_SIGNATURE],
    ['X of the ID key off the curve', good, change(goodAuth, [0x244, 1]), ID_BLOCK, BAD_SIGNATURE],
    ['Y of the ID key off the curve', good, change(goodAuth, [0x28c, 1]), ID_BLOCK, BAD_SIGNATURE],
    ['X of the ID key of more than 48 bytes', good, change(goodAuth, [0x274, 1]), ID_BLOCK, BAD_SIGNATURE],
    ['R of the ID key’s signature', good, change(goodAuth, [0x680, 1]), BOTH, BAD_SIGNATURE],
    ['S of the ID key’s signature', good, change(goodAuth, [0x6c8, 1]), BOTH, BAD_SIGNATURE],
    ['that, without an author key', good, change(goodAuth, [0x680, 1]), ID_BLOCK, 0],
    ['curve 3 of the author key', good, change(goodAuth, [0x880, 1]), BOTH, BAD_SIGNATURE],
    ['X of the author key off the curve', good, change(goodAuth, [0x884, 1]), BOTH, BAD_SIGNATURE],
    ['Y of the author key off the curve', good, change(goodAuth, [0x8cc, 1]), BOTH, BAD_SIGNATURE],
    [
      'behind Y of the ID key, which the author signed',
      good,
      change(goodAuth, [0x643, 1]),
      BOTH,
      BAD_SIGNATURE,
    ],
    ['the same, without an author key', good, change(goodAuth, [0x643, 1]), ID_BLOCK, 0],
    ['a reserved byte at the end', good, change(goodAuth, [0xfff, 1]), BOTH, 0],
  ])('with %s answers %#x', (_what, block, auth, flags, status) => {
    expect(finish(block, auth, flags)).toBe(status);
  });

  it('with everything wrong answers what firmware comes upon first', () => {
    const wrong: Change[] = [
      [0x884, 1],
      [0x680, 1],
      [0x40, 1],
      [4, 1],
      [0, 1],
    ];
    const blocks: readonly (readonly [Change[], number])[] = [
      [
        [
          [0, 1],
          [0x58, 1],
        ],
        BAD_MEASUREMENT,
      ],
      [[[0x58, 1]], POLICY_FAILURE],
      [[], INVALID_PARAM],
    ];
    for (const [changes, status] of blocks) {
      expect(finish(change(good, ...changes), change(goodAuth, ...wrong), BOTH)).toBe(status);
      machine.close();
    }
    expect(finish(good, change(goodAuth, ...wrong.slice(0, 4)), BOTH)).toBe(INVALID_PARAM);
    machine.close();
    expect(finish(good, change(goodAuth, ...wrong.slice(0, 3)), BOTH)).toBe(BAD_SIGNATURE);
  });

  it('that is refused leaves the guest in state LAUNCH, without an identity, and may be tried again', () => {
    const { context, fields } = prepare(good, change(goodAuth, [0x884, 1]));
    expect(machine.launchFinish(context, fields(BOTH))).toBe(BAD_SIGNATURE);
    const answer = machine.firmwarePage();
    machine.run(CMD.GUEST_STATUS, [
      [0, 8, context],
      [8, 8, answer],
    ]);
    expect(machine.read(answer, 32)[12]).toBe(1);
    expect(machine.launchFinish(context, fields(ID_BLOCK))).toBe(0);
  });

  it.each([
    ['a block where no memory is', [8, 8, 1n << 40n], INVALID_ADDRESS],
    ['an authentication page where no memory is', [16, 8, 1n << 40n], INVALID_ADDRESS],
    ['a block in the RMP', [8, 8, 'rmp'], INVALID_ADDRESS],
    ['reserved flags', [0x18, 1, 9], INVALID_PARAM],
    ['a reserved byte behind the flags', [0x1f, 1, 1], INVALID_PARAM],
  ] as const)('with %s answers %#x', (_what, [offset, size, value], status) => {
    const { context, fields } = prepare(good, goodAuth);
    const field: Field = [offset, size, value === 'rmp' ? machine.rmp.base : value];
    expect(machine.launchFinish(context, [...fields(ID_BLOCK), field])).toBe(status);
  });

  it('may lie anywhere, across pages too', () => {
    const { context } = prepare(good, goodAuth);
    const pages = machine.page(2);
    machine.memory.write((pages + 0xff0) as Spa, good);
    machine.memory.write((pages + 0x1ff8) as Spa, goodAuth);
    expect(
      machine.launchFinish(context, [
        [8, 8, pages + 0xff0],
        [16, 8, pages + 0x1ff8],
        [0x18, 1, BOTH],
      ]),
    ).toBe(0);
  });

  it('has the key that signed it, or the author’s key where there is one, mixed into the keys that the guest derives', () => {
    machine = new Machine().init();
    const others = {
      id: generateKeyPairSync('ec', { namedCurve: 'P-384' }),
      author: generateKeyPairSync('ec', { namedCurve: 'P-384' }),
    };
    const block = machine.page();
    machine.memory.write(block, good);
    const KEY_REQ = 3;
    let asid = 0;
    const derivedKey = (signers: typeof others, flags: number): string => {
      const auth = machine.page();
      machine.memory.write(auth, authOf(good, signers));
      const guest = machine.runGuest({
        asid: ++asid,
        finish: [
          [8, 8, block],
          [16, 8, auth],
          [0x18, 1, flags],
        ],
      });
      const { payload } = guest.ask(KEY_REQ, new Uint8Array(32));
      expect(payload[0]).toBe(0);
      return hex(payload.subarray(0x20, 0x40));
    };
    const both = { id, author };
    const keys = [
      derivedKey(both, 0),
      derivedKey(both, ID_BLOCK),
      derivedKey({ id: others.id, author }, ID_BLOCK),
      derivedKey(both, BOTH),
      derivedKey({ id, author: others.author }, BOTH),
    ];
    expect(new Set(keys).size).toBe(5);
    expect(derivedKey({ id: others.id, author }, 0)).toBe(keys[0]);
    expect(derivedKey({ id, author: others.author }, ID_BLOCK)).toBe(keys[1]);
    // The author vouches for the ID key: another one is the same guest.
    expect(derivedKey({ id: others.id, author }, BOTH)).toBe(keys[3]);
  });

  const FAMILY = [0x10, 0x20] as const;
  const IMAGE = [0x20, 0x30] as const;
  const ID_KEY = [0xe0, 0x110] as const;
  const AUTHOR = [0x110, 0x140] as const;
  const sha384 = (bytes: Uint8Array): string => createHash('sha384').update(bytes).digest('hex');

  it.each([
    ['ID block and author key', BOTH, 7, 1],
    ['ID block alone', ID_BLOCK, 7, 0],
    ['neither', 0, 0, 0],
    // Firmware notes the flag as it stands.
    ['author key without a block', AUTHOR_KEY, 0, 1],
  ])('of %s shows in reports, and no more', (_what, flags, svn, authorKeyEn) => {
    machine = new Machine().init();
    const [block, auth] = [machine.page(), machine.page()];
    machine.memory.write(block, good);
    machine.memory.write(auth, goodAuth);
    const guest = machine.runGuest({
      finish: [
        [8, 8, block],
        [16, 8, auth],
        [0x18, 1, flags],
      ],
    });
    const { report } = guest.report();
    const view = new DataView(report.buffer, report.byteOffset);
    const field = ([from, to]: readonly [number, number]): string => hex(report.subarray(from, to));
    const has = (flags & ID_BLOCK) !== 0;
    expect(view.getUint32(4, true)).toBe(svn);
    expect(view.getUint32(0x48, true)).toBe(authorKeyEn);
    expect(field(FAMILY)).toBe((has ? 'fa' : '00').repeat(16));
    expect(field(IMAGE)).toBe((has ? '1a' : '00').repeat(16));
    expect(field(ID_KEY)).toBe(has ? sha384(publicKey(id.publicKey)) : '00'.repeat(48));
    expect(field(AUTHOR)).toBe(flags === BOTH ? sha384(publicKey(author.publicKey)) : '00'.repeat(48));
  });

  it.each([
    ['nothing', 0, 0],
    ['an ID block', ID_BLOCK, 2],
    ['an author key without a block', AUTHOR_KEY, 1],
    ['an ID block and an author key', BOTH, 3],
    ['the VCEK disabled', 4, 4],
  ])('moves on with its guest: LAUNCH_FINISH with %s', (_what, flags, exported) => {
    machine = new Machine().init();
    const [block, auth] = [machine.page(), machine.page()];
    machine.memory.write(block, good);
    machine.memory.write(auth, goodAuth);
    const finish: Field[] = [
      [8, 8, block],
      [16, 8, auth],
      [0x18, 1, flags],
    ];
    const guest = machine.runGuest({ finish });
    const request = new DataView(new ArrayBuffer(16));
    request.setBigUint64(0, BigInt(guest.context), true);
    request.setUint32(8, 1, true);
    const { payload } = guest.ask(7, new Uint8Array(request.buffer));
    const view = new DataView(payload.buffer, payload.byteOffset);
    expect([view.getUint32(0, true), view.getBigUint64(0x20 + 0x220, true)]).toEqual([0, BigInt(exported)]);
  });

  it.each([
    ['host data', 0, 0],
    ['host data, and the VCEK disabled', 4, 0x27],
  ])('apart, LAUNCH_FINISH takes %s', (_what, flags, status) => {
    machine = new Machine().init();
    const data = Array.from(
      { length: 4 },
      (_, i): Field => [0x20 + i * 8, 8, 0x1111111111111111n * BigInt(i + 1)],
    );
    const guest = machine.runGuest({ finish: [[0x18, 1, flags], ...data] });
    const { status: got, report } = guest.report();
    expect(got).toBe(status);
    const want = ['11', '22', '33', '44'].map((byte) => byte.repeat(8)).join('');
    expect(hex(report.subarray(0xc0, 0xe0))).toBe(status === 0 ? want : '00'.repeat(32));
  });
});
