/** A host that remaps, aliases, replays and rewrites an SNP guest's pages between its instructions, alone or with a second guest: no page that is not as the guest left it is accepted. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Pfn, Spa } from '../../../src/base/address.ts';
import { RmpViolation } from '../../../src/hardware/memory/rmp-violation.ts';
import { hlt, load, store } from './assembler.ts';
import { CODE, DATA, HANDLERS } from './guest-bench.ts';
import { ASID, OTHER_KEY, SnpBench } from './snp-bench.ts';

/** Few pages and few bytes of each, so that the steps of an attack meet. */
const PAGES = 2;
const OTHER_ASID = 6;
const NPF = 0x400;
const HLT = 0x78;

type Attack =
  | { readonly kind: 'remap'; readonly page: number; readonly to: number }
  | { readonly kind: 'write' | 'rewrite'; readonly page: number; readonly bytes: Uint8Array }
  | { readonly kind: 'copy'; readonly page: number; readonly from: number }
  | { readonly kind: 'save' | 'take' | 'replay' | 'foreign frame' | 'other guest'; readonly page: number }
  | { readonly kind: 'give back'; readonly page: number; readonly gpaOf: number }
  | { readonly kind: 'guest writes'; readonly page: number; readonly value: bigint }
  | { readonly kind: 'guest reads'; readonly page: number };

const page = fc.integer({ min: 0, max: PAGES - 1 });
const bytes = fc.uint8Array({ minLength: 1, maxLength: 16 });
const value = fc.bigInt({ min: 1n, max: (1n << 64n) - 1n });
const attack: fc.Arbitrary<Attack> = fc.oneof(
  fc.record({ kind: fc.constant('remap'), page, to: page }),
  fc.record({ kind: fc.constantFrom('write', 'rewrite'), page, bytes }),
  fc.record({ kind: fc.constant('copy'), page, from: page }),
  fc.record({ kind: fc.constantFrom('save', 'take', 'replay', 'foreign frame', 'other guest'), page }),
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('give back'), page, gpaOf: page }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('guest writes'), page, value }) },
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('guest reads'), page }) },
);

const SHARED_STATE = { assigned: false, large: false, immutable: false, gpa: 0, asid: 0 };

class HostileBench extends SnpBench {
  readonly #frames: Pfn[] = [];
  readonly #saved = new Map<number, Uint8Array>();
  readonly #otherKey = this.memory.encryption.addKey(OTHER_KEY);

  begin(): void {
    this.gate(29, HANDLERS);
    this.load([hlt()], HANDLERS);
    // One load at CODE, one store 64 bytes on; each ends in HLT.
    this.load([load('rbx', 'rdi'), hlt()]);
    this.load([store('rdi', 'rbx'), hlt()], CODE + 64);
    this.launch();
    for (let i = 0; i < PAGES; i++) this.#frames.push(this.frameOf((DATA >>> 12) + i));
  }

  gpa(index: number): number {
    return DATA + index * 4096;
  }
  spaOfPage(index: number): Spa {
    return (this.#frames[index]! * 4096) as Spa;
  }

  /** Runs one of the two pieces. True: the access was done; false: a fault of any kind came first. */
  access(what: 'load' | 'store', index: number, value = 0n): boolean {
    this.setVmsaLong(0x178, BigInt(what === 'load' ? CODE : CODE + 64));
    this.setVmsaLong(0x338, BigInt(this.gpa(index)));
    this.setVmsaLong(0x318, value);
    this.flush();
    const code = this.run();
    if (code === NPF) return false;
    expect(code).toBe(HLT);
    const rip = Number(this.vmsaLong(0x178));
    return rip !== HANDLERS + 1;
  }

  /** Hardware may refuse. */
  attack(step: Attack): void {
    const gfn = (DATA >>> 12) + step.page;
    const at = this.spaOfPage(step.page);
    const gpa = this.gpa(step.page);
    const { memory, rmp } = this;
    switch (step.kind) {
      case 'remap':
        this.map(gfn, this.#frames[step.to]!, 7n);
        return;
      case 'foreign frame':
        this.map(gfn, this.frame(), 7n);
        return;
      case 'save': {
        const bytes = new Uint8Array(4096);
        memory.read(at, bytes);
        this.#saved.set(step.page, bytes);
        return;
      }
      case 'take':
        rmp.rmpupdate(at, SHARED_STATE);
        return;
      case 'write':
        this.#unlessRefused(() => memory.write(at, step.bytes));
        return;
      case 'copy':
        this.#unlessRefused(() => memory.copy(at, this.spaOfPage(step.from), 4096));
        return;
      case 'rewrite':
        if (rmp.rmpupdate(at, SHARED_STATE) === 0) memory.write(at, step.bytes);
        return;
      case 'replay':
        if (rmp.rmpupdate(at, SHARED_STATE) === 0 && this.#saved.has(step.page))
          memory.write(at, this.#saved.get(step.page)!);
        return;
      case 'give back':
        rmp.rmpupdate(at, { ...SHARED_STATE, assigned: true, asid: ASID, gpa: this.gpa(step.gpaOf) });
        return;
      case 'other guest':
        // It has the page at the same address, and validates it.
        rmp.rmpupdate(at, { ...SHARED_STATE, assigned: true, asid: OTHER_ASID, gpa });
        rmp.setValidated(this.#frames[step.page]!, true);
        memory.encryption.writeUnder(this.#otherKey, at, new Uint8Array(16).fill(7));
        return;
    }
  }

  #unlessRefused(action: () => void): void {
    try {
      action();
    } catch (error) {
      if (!(error instanceof RmpViolation)) throw error;
    }
  }
}

describe('whatever a host does to an SNP guest’s pages', () => {
  it('a load of the guest gives what it stored there last, or faults', () => {
    fc.assert(
      fc.property(fc.array(attack, { minLength: 8, maxLength: 40 }), (steps) => {
        const bench = new HostileBench();
        try {
          bench.begin();
          const held = new Array<bigint>(PAGES).fill(0n);
          for (const step of steps) {
            if (step.kind === 'guest writes') {
              if (bench.access('store', step.page, step.value)) held[step.page] = step.value;
            } else if (step.kind === 'guest reads') {
              if (bench.access('load', step.page)) expect(bench.vmsaLong(0x318)).toBe(held[step.page]);
            } else bench.attack(step);
          }
        } finally {
          bench.close();
        }
      }),
      { numRuns: 150 },
    );
  });

  it('and without attacks no access faults: the test above does not pass for that reason', () => {
    const bench = new HostileBench();
    bench.begin();
    for (let i = 0; i < PAGES; i++) {
      expect(bench.access('store', i, BigInt(i + 100))).toBe(true);
      expect(bench.access('load', i)).toBe(true);
      expect(bench.vmsaLong(0x318)).toBe(BigInt(i + 100));
    }
    bench.attack({ kind: 'remap', page: 0, to: 1 });
    expect(bench.access('load', 0)).toBe(false);
    bench.close();
  });
});
