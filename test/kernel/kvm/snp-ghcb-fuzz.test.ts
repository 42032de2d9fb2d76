/**
 * A guest that writes anything into its GHCB, the GHCB MSR and lists of page state changes: KVM answers the guest or the VMM, nothing throws, another VM does not notice, and
 * everything can be closed. The seed is printed with a failure; FUZZ_SEED repeats it.
 */

import { afterAll, describe, expect, it } from 'vitest';
import type { Hva } from '../../../src/base/address.ts';
import { Random } from '../../oracle/random.ts';
import { BUFFER, FIELD, type FieldName, GhcbBench } from './ghcb-bench.ts';
import { GuestMessages } from './guest-messages.ts';
import { FRESH, GHCB, SECRETS, SHARED, SnpVm } from './snp-bench.ts';
import { expectAllBack, pageStates } from './snp-rules.ts';

const SEED = Number(process.env['FUZZ_SEED'] ?? Date.now() % 0x7fff_ffff);
const ROUNDS = 1500;
const NAMES = Object.keys(FIELD) as FieldName[];
const CODES = [
  0x27n,
  0x37n,
  0x6en,
  0x6fn,
  0x72n,
  0x76n,
  0x7bn,
  0x7cn,
  0x81n,
  0x87n,
  0x89n,
  0x8an,
  0x8bn,
  0x400n,
  0x403n,
  ...[1, 2, 3, 4, 5, 0x10, 0x11, 0x12, 0x13, 0x14, 0x18, 0x1a, 0xfffd, 0xfffe, 0xffff].map(
    (low) => 0x8000_0000n + BigInt(low),
  ),
];
const MSR_CODES = [0x1n, 0x2n, 0x4n, 0x6n, 0x10n, 0x12n, 0x14n, 0x16n, 0x80n, 0x100n, 0xfffn];
const ADDRESSES = [
  0n,
  0x1000n,
  BigInt(GHCB),
  BigInt(BUFFER),
  BigInt(SHARED),
  BigInt(FRESH),
  0x1f_f000n,
  0x20_0000n,
  0xfee0_0000n,
  1n << 47n,
  1n << 51n,
  (1n << 64n) - 8n,
];

class Values extends Random {
  long(): bigint {
    return this.u64() >> BigInt(this.below(64));
  }
  /** A number that may mean something: a small one, an address, anything. */
  number(): bigint {
    return this.pick([
      () => BigInt(this.below(20)),
      () => this.pick(ADDRESSES) + BigInt(this.below(3) * 8),
      () => this.long(),
    ])();
  }
}

/** Answers an exit as a VMM might, or worse. */
function answer(random: Values, bench: GhcbBench): void {
  const { kvmRun, sev } = bench.snp.vcpu;
  switch (kvmRun.exitReason) {
    case 3:
      kvmRun.hypercallRet = BigInt(random.oneIn(3) ? random.below(50) : 0);
      if (random.oneIn(2)) return;
      try {
        const [address, pages, attributes] = [0, 1, 2].map((i) => kvmRun.hypercallArg(i));
        bench.snp.vm.setMemoryAttributes({
          address: address!,
          size: pages! * 4096n,
          attributes: (attributes! >> 1n) & 8n,
          flags: 0n,
        });
      } catch {
        // What cannot be converted stays as it is.
      }
      return;
    case 40:
      sev!.exits.vmgexitRet = random.pick([0, 0, 1, 2, 7, 0x8000_0000]);
      sev!.exits.vmgexitFlags = random.below(2);
      return;
    case 43:
      sev!.exits.reqCertsRet = random.pick([0n, 0n, 5n, 11n, 28n, 99n]);
      return;
    default:
  }
}

function step(random: Values, bench: GhcbBench): void {
  const { vcpu } = bench.snp;
  // A vCPU that waits in reset hold is woken.
  if (vcpu.getMpState() !== 0) vcpu.setMpState(0);
  if (random.oneIn(4)) bench.ask((random.long() & ~0xfffn) | random.pick(MSR_CODES));
  else {
    const request: Partial<Record<FieldName, bigint>> = {};
    for (const name of NAMES) if (random.below(5) > 0) request[name] = random.number();
    request.code = random.oneIn(10) ? random.long() : random.pick(CODES);
    request.info1 ??= random.number();
    request.info2 ??= random.number();
    if (random.below(3) > 0) request.scratch = BigInt(BUFFER + random.below(64) * 8);
    const bytes = Uint8Array.from({ length: 64 }, () => random.below(256));
    if (random.oneIn(2)) bytes.set([random.below(3), 0, random.below(8), 0, 0, 0, 0, 0]);
    bench.write(BUFFER, bytes);
    // Who takes its own VMSA away asks nothing any more.
    if (request.code === 0x8000_0013n) request.info1 |= 1n << 32n;
    const invalid = NAMES.filter(() => random.oneIn(20));
    const gpa = random.oneIn(20) ? SHARED : GHCB;
    bench.request({ ...request, invalid, usage: random.oneIn(30) ? random.below(9) : 0 }, gpa);
  }
  for (let exits = 0; exits < 300 && bench.core.script.length > 0; exits++) {
    answer(random, bench);
    vcpu.run();
  }
  bench.core.script.splice(0);
}

const bystander = new SnpVm({ memory: 8 << 20, keepOpen: true }).init().start();
afterAll(() => {
  bystander.close();
});

describe(`a guest that asks anything (FUZZ_SEED=${SEED})`, () => {
  for (const [name, options] of [
    ['7.2', { certs: true }],
    ['6.12', { kernel: '6.12' }],
    ['early certificates', { early: ['certs'] }],
    ['local APICs in the kernel', { prepare: ({ vm }: SnpVm) => vm.enableCap({ cap: 121, args: [24n] }) }],
  ] as const)
    it(`${name}: is answered, does no harm, and can be closed`, () => {
      const random = new Values(SEED);
      const bench = new GhcbBench({
        ...options,
        others: [1],
        keepOpen: true,
        launch: (snp) => {
          snp.update(1, 0, 0x4000);
          snp.update(5, SECRETS, 4096);
        },
      }).register();
      const { snp } = bench;
      const other = snp.process.openKvm().createVm(4);
      other.memoryEncryptOp({
        id: 22,
        sevFd: snp.sevFd,
        data: { vmsaFeatures: 0n, flags: 0, ghcbVersion: 0 },
      });
      const states = pageStates(snp.kernel);
      const messages = new GuestMessages(snp);
      for (let i = 0; i < ROUNDS; i++) {
        step(random, bench);
        // Whatever it did to its GHCB, it may register another.
        if (i % 16 === 0) bench.register();
      }
      expect(bench.core.budgets.length).toBeGreaterThan(ROUNDS);
      expect(snp.kernel.psp!.leakedPages).toBe(0);
      for (const [state, count] of Object.entries(states))
        expect(pageStates(snp.kernel)[state] ?? 0, state).toBeGreaterThanOrEqual(count - 1);
      // Its keys are still its own, and firmware still listens.
      expect(messages.key.some((byte) => byte !== 0)).toBe(true);
      other.memoryEncryptOp({
        id: 100,
        sevFd: snp.sevFd,
        data: { policy: 0x30000n, gosvw: new Uint8Array(16), flags: 0 },
      });
      snp.process.exit();
      expectAllBack(snp.kernel);
      snp.kernel.close();
    });

  it('leaves another machine’s launch alone', () => {
    bystander.process.memory.write(bystander.hva as Hva, new Uint8Array(16));
    expect(bystander.update(1, 0, 0x2000)).toBe(0n);
    expect(pageStates(bystander.kernel)).toEqual({ firmware: 1, context: 1, 'guest-valid': 2 });
  });
});
