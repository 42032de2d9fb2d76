import { afterEach, describe, expect, it } from 'vitest';
import { pfn, spa, spaOf } from '../../../src/base/address.ts';
import { Trace, type TraceEvent } from '../../../src/base/trace.ts';
import { HostMemory, NO_FRAME } from '../../../src/hardware/memory/host-memory.ts';
import { MemoryPool } from '../../../src/hardware/memory/pool.ts';

const MIB = 1048576;
const open: HostMemory[] = [];
const host = (bytes: number, pool?: MemoryPool, trace = new Trace()): HostMemory => {
  const memory = HostMemory.create({ bytes, trace, ...(pool && { pool }) });
  open.push(memory);
  return memory;
};

afterEach(() => {
  for (const memory of open.splice(0)) memory.close();
});

describe('the size of a host', () => {
  it.each([0, -4096, 4096, MIB - 4096, MIB + 1, 4096 * MIB + 4096, Number.NaN, 1.5 * MIB + 0.5])(
    'cannot be %d bytes',
    (bytes) => {
      expect(() => host(bytes)).toThrow(RangeError);
    },
  );

  it.each([
    [MIB, 256],
    [MIB + 4096, 257],
    [64 * MIB, 16384],
  ])('of %d bytes gives %d frames', (bytes, frames) => {
    expect(host(bytes).frameCount).toBe(frames);
  });

  it('can be 4 GiB exactly, and the last byte of it works', () => {
    const memory = host(4096 * MIB);
    expect(memory.frameCount).toBe(1048576);
    memory.write(spa(4294967292), new Uint8Array([1, 2, 3, 4]));
    expect(memory.load32(spa(4294967292))).toBe(0x04030201);
    const owner = memory.owner('test');
    const giga = [memory.allocate(18, owner), memory.allocate(18, owner), memory.allocate(18, owner)];
    expect(new Set(giga)).toEqual(new Set([262144, 524288, 786432]));
    expect(memory.allocate(18, owner)).toBe(-1);
    for (const frame of giga) memory.free(pfn(frame), 18);
  });

  it('costs less than one percent of it in tables, with a reverse map table too: what the engine counts and what is never free', () => {
    const { arrayBuffers } = process.memoryUsage();
    const memory = HostMemory.create({ bytes: 256 * MIB, trace: new Trace(), rmp: true });
    const beside = process.memoryUsage().arrayBuffers - arrayBuffers;
    const inside = (memory.frameCount - memory.freeFrames) * 4096;
    expect(memory.tableBytes).toBeLessThan((256 * MIB) / 100);
    expect(beside + inside).toBeLessThan((256 * MIB) / 100);
    // A frame: 12 bytes of accounting, 1 of flags, 4 of tag, 16 of reverse map.
    expect(memory.tableBytes).toBeGreaterThan(65536 * 33);
    memory.close();
  });
});

describe('frames', () => {
  it('never include frame 0, which stays zero', () => {
    const memory = host(MIB);
    const owner = memory.owner('test');
    const seen: number[] = [];
    for (let frame = memory.allocate(0, owner); frame !== NO_FRAME; frame = memory.allocate(0, owner)) {
      memory.page(frame).fill(0xff);
      seen.push(frame);
    }
    expect(seen.length).toBe(252);
    expect(Math.min(...seen)).toBe(4);
    expect(memory.page(pfn(0)).every((byte) => byte === 0)).toBe(true);
    expect(memory.allocate(0, owner)).toBe(-1);
    expect(owner.frames).toBe(252);
    for (const frame of seen) memory.free(pfn(frame), 0);
    expect(memory.freeFrames).toBe(252);
  });

  it('are zero when they come, whatever their last owner left, in every order', () => {
    const memory = host(8 * MIB);
    const owner = memory.owner('test');
    for (let order = 0; order <= 10; order++) {
      const frame = memory.allocate(order, owner) as number;
      memory.bytes.fill(0xa5, frame * 4096, (frame + (1 << order)) * 4096);
      memory.free(pfn(frame), order);
      const again = memory.allocate(order, owner) as number;
      expect(again).toBe(frame);
      expect(memory.bytes.subarray(again * 4096, (again + (1 << order)) * 4096).every((b) => b === 0)).toBe(
        true,
      );
      memory.free(pfn(again), order);
    }
  });

  it('of a block that was used in part are zero as well', () => {
    const memory = host(8 * MIB);
    const owner = memory.owner('test');
    const block = memory.allocate(9, owner) as number;
    memory.free(pfn(block), 9);
    memory.write(spa((block + 5) * 4096 + 7), new Uint8Array([1]));
    const again = memory.allocate(9, owner) as number;
    expect(memory.load32(spa((again + 5) * 4096 + 4))).toBe(0);
    memory.free(pfn(again), 9);
  });

  it('of a 2 MiB block can be freed 4 KiB at a time', () => {
    const memory = host(8 * MIB);
    const owner = memory.owner('test');
    const free = memory.freeFrames;
    const block = memory.allocate(9, owner) as number;
    expect(block % 512).toBe(0);
    memory.free(pfn(block + 7), 0);
    expect(owner.frames).toBe(511);
    expect(memory.ownerOf(pfn(block + 7))).toBeUndefined();
    expect(memory.ownerOf(pfn(block + 8))).toBe(owner);
    expect(() => memory.free(pfn(block), 9)).toThrow(RangeError);
    for (let i = 0; i < 512; i++) if (i !== 7) memory.free(pfn(block + i), 0);
    expect(memory.freeFrames).toBe(free);
    expect(memory.leaks()).toEqual([]);
  });

  it('are accounted to their owner, and what is left at the end is a leak with a name', () => {
    const memory = host(8 * MIB);
    const a = memory.owner('a');
    const b = memory.owner('b');
    expect(memory.owner('a')).toBe(a);
    const one = memory.allocate(3, a) as number;
    const other = memory.allocate(0, b) as number;
    expect(memory.leaks()).toEqual([
      { owner: 'a', frames: 8 },
      { owner: 'b', frames: 1 },
    ]);
    memory.free(pfn(one), 3);
    expect(memory.usage()).toEqual(new Map([['b', 1]]));
    memory.free(pfn(other), 0);
    expect(memory.leaks()).toEqual([]);
  });

  it.each([
    ['twice', 0, 0, 4],
    ['of the zero frame', 0, 0, 0],
    ['of a reserved frame', 1, 0, 1],
    ['beyond the end', 256, 0, 256],
    ['of a negative frame', -1, 0, -1],
  ])('cannot be freed %s', (what, _frame, order, at) => {
    const memory = host(MIB);
    const frame = memory.allocate(0, memory.owner('test')) as number;
    memory.free(pfn(frame), 0);
    expect(() => memory.free(pfn(what === 'twice' ? frame : at), order)).toThrow(RangeError);
    expect(memory.freeFrames).toBe(252);
  });

  it('cannot be freed with a larger order than their block has, or misaligned', () => {
    const memory = host(MIB);
    const owner = memory.owner('test');
    const frame = memory.allocate(2, owner) as number;
    expect(() => memory.free(pfn(frame), 3)).toThrow(RangeError);
    expect(() => memory.free(pfn(frame + 1), 1)).toThrow(RangeError);
    expect(owner.frames).toBe(4);
    memory.free(pfn(frame), 2);
  });

  it('cannot be asked for in orders that do not exist', () => {
    const memory = host(MIB);
    expect(() => memory.allocate(19, memory.owner('test'))).toThrow(RangeError);
    expect(() => memory.allocate(-1, memory.owner('test'))).toThrow(RangeError);
  });

  it('are traced when they come and go', () => {
    const trace = new Trace();
    const events: TraceEvent[] = [];
    trace.listen((event) => events.push(event));
    const memory = host(MIB, undefined, trace);
    const frame = memory.allocate(1, memory.owner('slot 3')) as number;
    memory.free(pfn(frame), 1);
    expect(events).toEqual([
      { kind: 'page', who: 'kernel', what: 'allocate', pfn: frame, pages: 2, why: 'slot 3' },
      { kind: 'page', who: 'kernel', what: 'free', pfn: frame, pages: 2, why: 'slot 3' },
    ]);
  });
});

describe('host-side access', () => {
  it('keeps bytes across frames', () => {
    const memory = host(MIB);
    for (const size of [1, 31, 32, 33, 4096, 10000]) {
      const data = Uint8Array.from({ length: size }, (_, i) => i * 7 + size);
      const back = new Uint8Array(size);
      memory.write(spa(5 * 4096 - 3), data);
      memory.read(spa(5 * 4096 - 3), back);
      expect(back).toEqual(data);
    }
    memory.clear(spa(5 * 4096 - 3), 10000);
  });

  it('loads and stores little-endian words, aligned or not', () => {
    const memory = host(MIB);
    for (const at of [0x5000, 0x5001, 0x5006, 0x5ffd]) {
      memory.store32(spa(at), -2);
      expect(memory.load32(spa(at))).toBe(-2);
      expect(memory.bytes[at]).toBe(0xfe);
      memory.store64(spa(at), 0xfedcba9876543210n);
      expect(memory.load64(spa(at))).toBe(0xfedcba9876543210n);
      expect([...memory.bytes.subarray(at, at + 8)]).toEqual([
        0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe,
      ]);
      memory.clear(spa(at), 8);
      expect(memory.load64(spa(at))).toBe(0n);
    }
  });

  it('copies ranges, overlapping ones too', () => {
    const memory = host(MIB);
    memory.write(
      spa(0x5000),
      Uint8Array.from({ length: 100 }, (_, i) => i),
    );
    memory.copy(spa(0x5001), spa(0x5000), 100);
    expect([...memory.bytes.subarray(0x5000, 0x5004)]).toEqual([0, 0, 1, 2]);
    expect(memory.bytes[0x5064]).toBe(99);
    memory.clear(spa(0x5000), 101);
  });

  it.each([-1, 1048576, 1048573])('at 0x%x of 1 MiB is refused', (at) => {
    const memory = host(MIB);
    const four = new Uint8Array(4);
    expect(() => memory.read(spa(at), four)).toThrow(RangeError);
    expect(() => memory.write(spa(at), four)).toThrow(RangeError);
    expect(() => memory.clear(spa(at), 4)).toThrow(RangeError);
    expect(() => memory.copy(spa(at), spa(0x5000), 4)).toThrow(RangeError);
    expect(() => memory.load32(spa(at))).toThrow(RangeError);
    expect(() => memory.store32(spa(at), 0)).toThrow(RangeError);
    expect(() => memory.load64(spa(at))).toThrow(RangeError);
    expect(() => memory.store64(spa(at), 0n)).toThrow(RangeError);
  });
});

describe('clearing bits of a word', () => {
  it('returns the word as it was, and leaves the other bits', () => {
    const memory = host(MIB);
    memory.store32(spa(0x8000), 0x6f);
    expect(memory.clearBits32(spa(0x8000), 0x42)).toBe(0x6f);
    expect(memory.load32(spa(0x8000))).toBe(0x2d);
    expect(memory.clearBits32(spa(0x8000), 0x42)).toBe(0x2d);
    expect(memory.load32(spa(0x8004))).toBe(0);
  });

  it.each([0x8001, 0x8002, MIB, -4, 4096 * MIB, 4097 * MIB])('at %d is refused', (at) => {
    const memory = host(MIB);
    expect(() => memory.clearBits32(spa(at), 1)).toThrow(RangeError);
  });
});

/** The word is set before it counts. */
function clearABit(memory: HostMemory, at: number): void {
  memory.words[at / 4] = 3;
  memory.clearBits32(spa(at), 1);
}

describe('the code generation', () => {
  const setUp = () => {
    const memory = host(MIB);
    const frame = memory.allocate(1, memory.owner('guest')) as number;
    memory.frameFlags[frame + 1] = 1;
    return { memory, frame, code: spaOf(pfn(frame + 1)) };
  };

  it.each<[string, (memory: HostMemory, code: number) => void]>([
    ['write', (memory, code) => memory.write(spa(code + 5), new Uint8Array(1))],
    [
      'write that reaches it from the frame before',
      (memory, code) => memory.write(spa(code - 1), new Uint8Array(2)),
    ],
    ['large write', (memory, code) => memory.write(spa(code - 100), new Uint8Array(200))],
    ['store32', (memory, code) => memory.store32(spa(code), 1)],
    ['clearBits32', (memory, code) => clearABit(memory, code)],
    ['store32 across the border', (memory, code) => memory.store32(spa(code - 2), 1)],
    ['store64', (memory, code) => memory.store64(spa(code + 8), 1n)],
    ['clear', (memory, code) => memory.clear(spa(code), 16)],
    ['copy', (memory, code) => memory.copy(spa(code), spa(code - 4096), 16)],
  ])('goes up with a host-side %s to a frame that holds decoded code', (_, act) => {
    const { memory, code } = setUp();
    const before = memory.codeGeneration;
    act(memory, code);
    expect(memory.codeGeneration).toBe(before + 1);
    expect(memory.load32(memory.codeGenerationAddress)).toBe(before + 1);
  });

  it('stays with reads and with writes next to the frame', () => {
    const { memory, code } = setUp();
    memory.write(spa(code - 16), new Uint8Array(16));
    memory.store32(spa(code - 4), 1);
    memory.write(code, new Uint8Array(0));
    memory.read(code, new Uint8Array(64));
    expect(memory.codeGeneration).toBe(0);
  });

  it('goes up when such a frame is freed, which takes the flag off', () => {
    const { memory, frame } = setUp();
    memory.free(pfn(frame), 0);
    expect(memory.codeGeneration).toBe(0);
    memory.free(pfn(frame + 1), 0);
    expect(memory.codeGeneration).toBe(1);
    expect(memory.frameFlags[frame + 1]).toBe(0);
  });

  it('has its flags in shared memory, one byte a frame', () => {
    const { memory, frame } = setUp();
    expect(memory.bytes[memory.frameFlagsAddress + frame + 1]).toBe(1);
  });
});

describe('closing a host', () => {
  it('gives the memory back all zero, and the next host takes it', () => {
    const pool = new MemoryPool(4);
    const first = host(2 * MIB, pool);
    const { wasm } = first;
    const owner = first.owner('test');
    for (const order of [0, 3, 5]) {
      const frame = first.allocate(order, owner) as number;
      first.bytes.fill(0xee, frame * 4096, (frame + (1 << order)) * 4096);
      first.frameFlags[frame] = 1;
    }
    first.close();
    expect(new Uint8Array(wasm.buffer).every((byte) => byte === 0)).toBe(true);
    expect(pool.idle).toBe(1);
    const second = host(4 * MIB, pool);
    expect(second.wasm).toBe(wasm);
    expect(second.bytes.length).toBe(4 * MIB);
    expect(pool.idle).toBe(0);
  });

  it('twice gives it back once', () => {
    const pool = new MemoryPool(4);
    const memory = host(MIB, pool);
    memory.close();
    memory.close();
    expect(pool.idle).toBe(1);
  });

  it('leaves no way to reach the memory', () => {
    const memory = host(MIB);
    memory.close();
    expect(memory.bytes.length).toBe(0);
    expect(() => memory.read(spa(0), new Uint8Array(1))).toThrow(RangeError);
    expect(() => memory.write(spa(0), new Uint8Array(1))).toThrow(RangeError);
    expect(() => memory.page(pfn(0))).toThrow(RangeError);
  });

  it('never gives a small host a larger memory than it asked for', () => {
    const pool = new MemoryPool(4);
    host(4 * MIB, pool).close();
    expect(host(2 * MIB, pool).bytes.length).toBe(2 * MIB);
    expect(pool.idle).toBe(1);
  });

  it('drops a memory of which more than 1 GiB was touched', () => {
    const pool = new MemoryPool(4);
    const memory = host(4096 * MIB, pool);
    const owner = memory.owner('test');
    memory.allocate(18, owner);
    memory.allocate(0, owner);
    memory.close();
    expect(pool.idle).toBe(0);
  });

  it('keeps no more idle memories than the pool may hold', () => {
    const pool = new MemoryPool(2);
    const hosts = [host(MIB, pool), host(MIB, pool), host(MIB, pool)];
    for (const memory of hosts) memory.close();
    expect(pool.idle).toBe(2);
  });
});
