/**
 * The address space against a model of plain Maps, with a stand-in for KVM that keeps frames between `faultIn` and the
 * notifiers: whatever it holds must be the page that the process sees.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { hva, type Pfn, type Spa, spaOf } from '../../../src/base/address.ts';
import { LinuxError } from '../../../src/base/errors.ts';
import { Trace } from '../../../src/base/trace.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import { READ_ACCESS, WRITE_ACCESS } from '../../../src/kernel/mm/page-table.ts';
import { Process } from '../../../src/kernel/process.ts';

const BASE = 0x40000000 - 8 * 4096;
const PAGES = 24;
const FILE_PAGES = 12;

/** One byte stands for a page's content: the byte at its start. */
interface ModelPage {
  protection: number;
  kind: 'anonymous' | 'shared' | 'private';
  filePage: number;
  /** Content of anonymous memory or of a private copy. */
  own: number | undefined;
}

class Model {
  readonly pages = new Map<number, ModelPage>();
  readonly file = new Map<number, number>();
  fileSize = 0;

  load(page: number): number | 'SIGSEGV' | 'SIGBUS' {
    const entry = this.pages.get(page);
    if (entry === undefined || entry.protection === 0) return 'SIGSEGV';
    if (entry.kind === 'anonymous') return entry.own ?? 0;
    if (entry.own !== undefined) return entry.own;
    return entry.filePage < this.fileSize ? (this.file.get(entry.filePage) ?? 0) : 'SIGBUS';
  }

  store(page: number, value: number): 'OK' | 'SIGSEGV' | 'SIGBUS' {
    const entry = this.pages.get(page);
    if (entry === undefined || (entry.protection & 2) === 0) return 'SIGSEGV';
    if (entry.kind !== 'anonymous' && entry.own === undefined && entry.filePage >= this.fileSize)
      return 'SIGBUS';
    if (entry.kind === 'shared') this.file.set(entry.filePage, value);
    else entry.own = value;
    return 'OK';
  }

  truncate(pages: number): void {
    this.fileSize = pages;
    for (const page of [...this.file.keys()]) if (page >= pages) this.file.delete(page);
    for (const entry of this.pages.values()) {
      if (entry.kind === 'private' && entry.filePage >= pages) entry.own = undefined;
    }
  }
}

const range = fc.record({
  page: fc.integer({ min: 0, max: PAGES - 1 }),
  count: fc.integer({ min: 1, max: 8 }),
});
const step = fc.oneof(
  fc.record({
    act: fc.constant('map' as const),
    range,
    protection: fc.constantFrom(0, 1, 3, 3, 3),
    kind: fc.constantFrom('anonymous' as const, 'shared' as const, 'private' as const),
    filePage: fc.integer({ min: 0, max: FILE_PAGES - 1 }),
  }),
  fc.record({ act: fc.constant('unmap' as const), range }),
  fc.record({ act: fc.constant('dontneed' as const), range }),
  fc.record({ act: fc.constant('remove' as const), range }),
  fc.record({ act: fc.constantFrom('punch' as const, 'allocate' as const), range }),
  fc.record({ act: fc.constant('truncate' as const), pages: fc.integer({ min: 0, max: FILE_PAGES }) }),
  fc.record({
    act: fc.constantFrom('store' as const, 'guest store' as const, 'file write' as const),
    page: fc.integer({ min: 0, max: PAGES - 1 }),
    value: fc.integer({ min: 1, max: 255 }),
  }),
  fc.record({
    act: fc.constantFrom('load' as const, 'guest load' as const),
    page: fc.integer({ min: 0, max: PAGES - 1 }),
  }),
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

class Bench {
  readonly memory = HostMemory.create({ bytes: 0x100000, trace: new Trace() });
  readonly process = new Process({
    memory: this.memory,
    openDevice: () => {
      throw new Error('no device');
    },
  });
  readonly model = new Model();
  readonly fd = this.process.memfdCreate('ram');
  /** What KVM keeps: page → frame and whether it may write there. */
  readonly held = new Map<number, { frame: Pfn; writable: boolean }>();
  readonly #open = new Set<string>();

  constructor() {
    this.process.ftruncate(this.fd, BigInt(FILE_PAGES * 4096));
    this.model.fileSize = FILE_PAGES;
    this.process.memory.notifiers.register({
      begin: (start, end) => {
        this.#open.add(`${start}-${end}`);
        for (const page of this.held.keys()) {
          if (BASE + page * 4096 >= start && BASE + page * 4096 < end) this.held.delete(page);
        }
      },
      end: (start, end) => {
        expect(this.#open.delete(`${start}-${end}`)).toBe(true);
      },
    });
  }

  address(page: number) {
    return hva(BASE + page * 4096);
  }

  outcome(call: () => number | 'OK'): number | string {
    try {
      return call();
    } catch (error) {
      if (error instanceof LinuxError) return error.signal ?? error.code;
      throw error;
    }
  }

  load(page: number): number | string {
    const byte = new Uint8Array(1);
    return this.outcome(() => {
      this.process.memory.read(this.address(page), byte);
      return byte[0]!;
    });
  }

  /** What a guest does: uses what KVM holds, or faults. */
  guest(page: number, value: number | undefined): void {
    const write = value !== undefined;
    let held = this.held.get(page);
    const expected = write ? this.model.store(page, value) : this.model.load(page);
    if (held === undefined || (write && !held.writable)) {
      const result = this.process.memory.faultIn(this.address(page), write ? WRITE_ACCESS : READ_ACCESS);
      if (result !== 0) {
        expect(result).toBe(-14);
        expect(expected).toMatch(/SIG/);
        return;
      }
      held = { frame: this.process.memory.page.pfn, writable: this.process.memory.page.writable };
      this.held.set(page, held);
    }
    const at: Spa = spaOf(held.frame);
    if (write) {
      expect(expected).toBe('OK');
      this.memory.write(at, new Uint8Array([value]));
    } else {
      expect(this.memory.load32(at) & 0xff).toBe(expected);
    }
  }

  run(step: Step): void {
    const { model, process } = this;
    const pagesOf = ({ page, count }: { page: number; count: number }): number[] =>
      Array.from({ length: Math.min(count, PAGES - page) }, (_, i) => page + i);
    switch (step.act) {
      case 'map': {
        const pages = pagesOf(step.range);
        const anonymous = step.kind === 'anonymous';
        process.memory.mmap({
          length: pages.length * 4096,
          protection: step.protection,
          flags: 0x10 | (step.kind === 'shared' ? 1 : 2) | (anonymous ? 0x20 : 0),
          address: this.address(step.range.page),
          ...(!anonymous && { fd: this.fd, offset: BigInt(step.filePage * 4096) }),
        });
        for (const [i, page] of pages.entries()) {
          const { kind, protection } = step;
          model.pages.set(page, { kind, protection, filePage: step.filePage + i, own: undefined });
        }
        break;
      }
      case 'unmap': {
        const pages = pagesOf(step.range);
        process.memory.munmap(this.address(pages[0]!), pages.length * 4096);
        for (const page of pages) model.pages.delete(page);
        break;
      }
      case 'dontneed': {
        const pages = pagesOf(step.range);
        const got = this.outcome(() => {
          process.memory.madvise(this.address(pages[0]!), pages.length * 4096, 4);
          return 'OK';
        });
        expect(got).toBe(pages.every((page) => model.pages.has(page)) ? 'OK' : 'ENOMEM');
        for (const page of pages) {
          const entry = model.pages.get(page);
          if (entry !== undefined) entry.own = undefined;
        }
        break;
      }
      case 'remove': {
        const page = step.range.page;
        const entry = model.pages.get(page);
        const expected =
          entry === undefined
            ? 'ENOMEM'
            : { anonymous: 'EINVAL', private: 'EACCES', shared: 'OK' }[entry.kind];
        const got = this.outcome(() => {
          process.memory.madvise(this.address(page), 4096, 9);
          return 'OK';
        });
        expect(got).toBe(expected);
        if (expected === 'OK') model.file.delete(entry!.filePage);
        break;
      }
      case 'punch':
        process.fallocate(this.fd, 3, BigInt(step.range.page * 4096), BigInt(step.range.count * 4096));
        for (let i = 0; i < step.range.count; i++) model.file.delete(step.range.page + i);
        break;
      case 'allocate':
        process.fallocate(this.fd, 0, BigInt(step.range.page * 4096), BigInt(step.range.count * 4096));
        model.fileSize = Math.max(model.fileSize, step.range.page + step.range.count);
        break;
      case 'truncate':
        process.ftruncate(this.fd, BigInt(step.pages * 4096));
        model.truncate(step.pages);
        break;
      case 'file write':
        if (step.page >= model.fileSize) break;
        process.pwrite(this.fd, new Uint8Array([step.value]), BigInt(step.page * 4096));
        model.file.set(step.page, step.value);
        break;
      case 'store': {
        const got = this.outcome(() => {
          process.memory.write(this.address(step.page), new Uint8Array([step.value]));
          return 'OK';
        });
        expect(got).toBe(model.store(step.page, step.value));
        break;
      }
      case 'load':
        expect(this.load(step.page)).toBe(model.load(step.page));
        break;
      case 'guest store':
        this.guest(step.page, step.value);
        break;
      case 'guest load':
        this.guest(step.page, undefined);
        break;
    }
    expect(this.#open.size).toBe(0);
    for (const [page, { frame }] of this.held) {
      expect(this.memory.ownerOf(frame)).toBeDefined();
      expect(this.memory.load32(spaOf(frame)) & 0xff).toBe(model.load(page));
    }
  }

  end(): void {
    for (let page = 0; page < PAGES; page++) expect(this.load(page)).toBe(this.model.load(page));
    this.process.exit();
    expect(this.held.size).toBe(0);
    expect(this.memory.leaks()).toEqual([]);
    this.memory.close();
  }
}

describe('an address space', () => {
  it('agrees with a model, and so does everything that KVM holds of it', () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 50, maxLength: 200, size: 'max' }), (steps) => {
        const bench = new Bench();
        for (const each of steps) bench.run(each);
        bench.end();
      }),
      { numRuns: 200 },
    );
  });
});
