import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { array, bytes, pad, s16, s32, s64, struct, u8, u16, u32, u64, union } from '../../src/abi/layout.ts';

const inner = struct('inner', { kind: u8, value: u32 });
const outer = struct('outer', {
  a: u8,
  b: u64,
  c: u16,
  nested: inner,
  list: array(u16, 3),
  tail: u8,
  gap: pad(2),
  raw: bytes(4),
});

describe('struct', () => {
  it('places members by their natural alignment and rounds the size up', () => {
    expect(outer.offsets).toEqual({ a: 0, b: 8, c: 16, nested: 20, list: 28, tail: 34, gap: 35, raw: 37 });
    expect(outer.size).toBe(48);
    expect(outer.alignment).toBe(8);
    expect(inner.size).toBe(8);
  });

  it('encodes little-endian and fills what is left out with zeros', () => {
    const encoded = outer.encode({ a: 1, b: 0x1122334455667788n, nested: { value: 0xdeadbeef }, list: [7] });
    expect(Buffer.from(encoded).toString('hex')).toBe(
      [
        '0100000000000000',
        '8877665544332211',
        '0000000000000000',
        'efbeadde',
        '070000000000',
        '00'.repeat(14),
      ].join(''),
    );
    expect(encoded.length).toBe(48);
  });

  it('decodes every member but padding', () => {
    expect(inner.decode(Uint8Array.of(5, 9, 9, 9, 1, 2, 0, 0))).toEqual({ kind: 5, value: 0x201 });
    expect(Object.keys(outer.decode(new Uint8Array(48)))).toEqual([
      'a',
      'b',
      'c',
      'nested',
      'list',
      'tail',
      'raw',
    ]);
  });

  it('names the member whose value does not fit', () => {
    expect(() => inner.encode({ kind: 256 })).toThrow('inner.kind: got 256, want an integer from 0 to 255');
    expect(() => outer.encode({ nested: { value: -1 } })).toThrow('outer.nested.value: got -1');
    expect(() => outer.encode({ b: 1n << 64n })).toThrow('outer.b: got 18446744073709551616');
    expect(() => outer.encode({ list: [1, 2, 3, 4] })).toThrow('outer.list: got 4 elements, want at most 3');
    expect(() => outer.encode({ list: [1, 70000] })).toThrow('outer.list[1]: got 70000');
    expect(() => outer.encode({ raw: new Uint8Array(5) })).toThrow('outer.raw: got 5 bytes, want at most 4');
  });

  it('refuses bytes that are too short', () => {
    expect(() => outer.decode(new Uint8Array(47))).toThrow('outer: got 47 bytes, want 48');
    expect(() => outer.view(new Uint8Array(47))).toThrow('outer: got 47 bytes, want 48');
  });

  it('round-trips any value', () => {
    const every = struct('every', { a: s16, b: s64, c: u32, d: s32, e: array(u64, 2), f: u8 });
    const big = (from: bigint, to: bigint) => fc.bigInt(from, to);
    fc.assert(
      fc.property(
        fc.record({
          a: fc.integer({ min: -0x8000, max: 0x7fff }),
          b: big(-(1n << 63n), (1n << 63n) - 1n),
          c: fc.integer({ min: 0, max: 0xffffffff }),
          d: fc.integer({ min: -0x80000000, max: 0x7fffffff }),
          e: fc.tuple(big(0n, (1n << 64n) - 1n), big(0n, (1n << 64n) - 1n)).map((pair) => [...pair]),
          f: fc.integer({ min: 0, max: 255 }),
        }),
        (value) => {
          expect(every.decode(every.encode(value))).toEqual(value);
        },
      ),
    );
  });
});

describe('view', () => {
  it('reads and writes the bytes in place, shared ones too', () => {
    const memory = new Uint8Array(new SharedArrayBuffer(64));
    const view = outer.view(memory.subarray(8));
    view.b = 0x0102030405060708n;
    view.nested.value = 77;
    view.list.set(2, 0xabcd);
    view.raw[3] = 9;
    expect(memory[8 + 8]).toBe(8);
    expect(memory[8 + 24]).toBe(77);
    expect(memory[8 + 32]).toBe(0xcd);
    expect(memory[8 + 40]).toBe(9);
    memory[8] = 200;
    expect(view.a).toBe(200);
    expect(view.list.at(2)).toBe(0xabcd);
  });

  it('yields the same accessor for a nested member each time', () => {
    const view = outer.view(new Uint8Array(48));
    expect(view.nested).toBe(view.nested);
    expect(view.raw).toBe(view.raw);
  });

  it('checks values and indices as encode does', () => {
    const view = outer.view(new Uint8Array(48));
    expect(() => {
      view.c = 65536;
    }).toThrow('outer.c: got 65536');
    expect(() => view.list.at(3)).toThrow('got index 3, want 0 to 2');
    expect(() => view.list.set(-1, 0)).toThrow('got index -1');
  });

  it('takes a whole nested value and an array of structures', () => {
    const pairs = struct('pairs', { of: array(inner, 2) });
    const view = pairs.view(new Uint8Array(16));
    view.of.set(1, { kind: 3, value: 4 });
    expect(view.of.at(1).kind).toBe(3);
    view.of = [{ kind: 9 }] as never;
    expect(view.of.at(0).kind).toBe(9);
    expect(view.of.at(1).kind).toBe(0);
  });
});

describe('union', () => {
  const either = struct('either', {
    tag: u8,
    body: union('body', { small: u16, large: struct('large', { x: u64, y: u32 }) }),
  });

  it('has the size of the largest member and puts all at the start', () => {
    expect(either.size).toBe(24);
    expect(either.offsets.body).toBe(8);
    expect(either.members.body.offsets).toEqual({ small: 0, large: 0 });
  });

  it('encodes exactly one member and decodes every reading', () => {
    const encoded = either.encode({ tag: 1, body: { large: { x: 0x10002n, y: 3 } } });
    expect(either.decode(encoded).body).toEqual({ small: 2, large: { x: 0x10002n, y: 3 } });
    expect(() => either.encode({ body: {} as never })).toThrow(
      'either.body: got 0 members, want exactly one',
    );
    expect(() => either.encode({ body: { small: 1, large: {} } as never })).toThrow('got 2 members');
  });
});
