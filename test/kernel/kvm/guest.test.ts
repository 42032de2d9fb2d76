/** Guests that run for real on a core, against a VM whose answers are in the test's hands. */
import { afterEach, describe, expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { Core } from '../../../src/hardware/cpu/core.ts';
import { supportedCpuid } from '../../../src/kernel/kvm/cpuid.ts';
import { DirtyTracking } from '../../../src/kernel/kvm/dirty-log.ts';
import { HostTime } from '../../../src/kernel/kvm/host-time.ts';
import type { MsrPermissions } from '../../../src/kernel/kvm/msr-filter.ts';
import type { GuestCore } from '../../../src/kernel/kvm/svm/guest-core.ts';
import { Vcpu, type VcpuVm } from '../../../src/kernel/kvm/vcpu.ts';
import { VmCapabilities } from '../../../src/kernel/kvm/vm-capabilities.ts';
import { FaultBench } from './fault-bench.ts';
import { GuestProgram } from './guest-program.ts';

const HVA = 0x7000_0000;
const CODE = 0x10_000;
const PAGE_TABLES = 0x1000;
const STACK = 0x8000;
/** gfns of the private part: 0x100 to 0x1ff, of the second slot. */
const PRIVATE = 0x100_000;

/** A VM with 128 KiB of shared memory at 0 (page tables, code) and 1 MiB of gmem slot at 1 MiB, and vCPUs in long mode. */
class GuestBench extends FaultBench implements VcpuVm {
  readonly sev = undefined;
  readonly capabilities = new VmCapabilities();
  readonly time = new HostTime();
  readonly interrupts = undefined;
  readonly bootCpuId = 0;
  readonly process = { exiting: false, enterKernel() {}, leaveKernel() {} };
  msrFilter: MsrPermissions | undefined = undefined;
  readonly dirtyTracking = new DirtyTracking();
  readonly timeslice: number;
  readonly vcpus: Vcpu[] = [];

  constructor(timeslice = 0) {
    super('7.2');
    this.capabilities.hypercallExits = 1 << 12;
    this.timeslice = timeslice;
    this.addSlot({ baseGfn: 0, npages: 32, flags: 0, userspaceAddr: HVA });
    this.addSlot({ baseGfn: 0x100, npages: 256, flags: 4, userspaceAddr: HVA + 0x100_000 });
    for (let gfn = 0x100; gfn < 0x200; gfn++) this.private.add(gfn);
    this.poke(PAGE_TABLES, [BigInt(PAGE_TABLES + 0x1000) | 7n]);
    this.poke(PAGE_TABLES + 0x1000, [BigInt(PAGE_TABLES + 0x2000) | 7n, 0x4000_0087n]);
    this.poke(
      PAGE_TABLES + 0x2000,
      Array.from({ length: 512 }, (_, i) => BigInt(i * 0x20_0000) | 0x87n),
    );
  }

  createCore(id: number): GuestCore {
    return new Core({ id, memory: this.memory, trace: this.trace });
  }
  vcpuClosed(): void {}

  /** Writes u64s to shared guest memory, within one page. */
  poke(gpa: number, values: bigint[]): void {
    for (const [i, value] of values.entries()) this.memory.store64(this.spa(gpa + i * 8), value);
  }
  /** The host address of shared guest memory. */
  spa(gpa: number): Spa {
    const page = gpa - (gpa % 4096);
    return (this.frame(`hva ${HVA + page}`) * 4096 + (gpa % 4096)) as Spa;
  }
  /** The u64 at a private gpa. */
  peekPrivate(gpa: number): bigint {
    return this.memory.load64((this.frame(`gmem ${gpa >>> 12}`) * 4096 + (gpa % 4096)) as Spa);
  }

  /** A vCPU that is about to run `program`. */
  boot(program: GuestProgram): Vcpu {
    const at = CODE + this.vcpus.length * 0x1000;
    this.memory.write(this.spa(at), program.assemble(at));
    const vcpu = new Vcpu(this, this.vcpus.length);
    vcpu.setCpuid2(supportedCpuid());
    const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
    const data = { ...flat, selector: 0x10, type: 3, db: 1, l: 0 };
    vcpu.setSregs({
      ...vcpu.getSregs(),
      cs: { ...flat, selector: 8, type: 11, db: 0, l: 1 },
      ds: data,
      es: data,
      ss: data,
      cr0: 0x80010033n,
      cr3: BigInt(PAGE_TABLES),
      cr4: 0x20n,
      efer: 0xd00n,
    });
    vcpu.setRegs({ ...vcpu.getRegs(), rip: BigInt(at), rsp: BigInt(STACK), rflags: 2n });
    this.vcpus.push(vcpu);
    return vcpu;
  }

  override close(): void {
    for (const vcpu of this.vcpus) vcpu.close();
    super.close();
  }
}

let bench: GuestBench;
afterEach(() => bench.close());

describe('a guest on a core', () => {
  it('prints by port I/O and halts', () => {
    bench = new GuestBench();
    const program = new GuestProgram().set('rdx', 0x3f8n);
    for (const byte of new TextEncoder().encode('hi\n')) program.set('rax', BigInt(byte)).out();
    const vcpu = bench.boot(program.hlt());
    const printed: number[] = [];
    while (vcpu.run() === 0 && vcpu.kvmRun.exitReason === 2) printed.push(vcpu.kvmRun.ioValue());
    expect(String.fromCharCode(...printed)).toBe('hi\n');
    expect(vcpu.kvmRun.exitReason).toBe(5);
    expect(vcpu.instructions).toBe(8);
  });

  it('reads a port into AL', () => {
    bench = new GuestBench();
    const vcpu = bench.boot(new GuestProgram().set('rax', 0x1100n).set('rdx', 0x60n).in().hlt());
    expect(vcpu.run()).toBe(0);
    vcpu.kvmRun.setIoValue(0x5a);
    expect(vcpu.run()).toBe(0);
    expect(vcpu.getRegs().rax).toBe(0x115an);
  });

  it('prints a string at once, byte by byte, from private memory', () => {
    bench = new GuestBench();
    const vcpu = bench.boot(
      new GuestProgram()
        .set('rbx', BigInt(PRIVATE))
        .set('rax', 0x0a6f6c6c6568n)
        .store('rbx', 'rax')
        .set('rsi', BigInt(PRIVATE))
        .set('rcx', 6n)
        .set('rdx', 0x3f8n)
        .outString()
        .outString()
        .hlt(),
    );
    const printed: number[] = [];
    while (vcpu.run() === 0 && vcpu.kvmRun.exitReason === 2) {
      expect([vcpu.kvmRun.ioDirection, vcpu.kvmRun.ioSize, vcpu.kvmRun.ioCount]).toEqual([1, 1, 1]);
      printed.push(vcpu.kvmRun.ioValue());
    }
    expect(String.fromCharCode(...printed)).toBe('hello\n');
    expect(vcpu.kvmRun.exitReason).toBe(5);
    expect(vcpu.getRegs()).toMatchObject({ rsi: BigInt(PRIVATE) + 6n, rcx: 0n });
  });

  it('reads a port into memory across pages, all elements by one exit', () => {
    bench = new GuestBench();
    const vcpu = bench.boot(
      new GuestProgram()
        .set('rdi', BigInt(PRIVATE) + 0xffdn)
        .set('rcx', 2n)
        .set('rdx', 0x60n)
        .inString()
        .set('rbx', BigInt(PRIVATE) + 0xffdn)
        .load('rax', 'rbx')
        .hlt(),
    );
    const { kvmRun } = vcpu;
    expect(vcpu.run()).toBe(0);
    expect([kvmRun.exitReason, kvmRun.ioDirection, kvmRun.ioSize, kvmRun.ioCount]).toEqual([2, 0, 2, 2]);
    kvmRun.setIoValue(0x1122, 0);
    kvmRun.setIoValue(0x3344, 1);
    expect(vcpu.run()).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(5);
    expect(vcpu.getRegs()).toMatchObject({ rax: 0x3344_1122n, rdi: BigInt(PRIVATE) + 0x1001n, rcx: 0n });
  });

  it('works in private memory, page by page as it is touched', () => {
    bench = new GuestBench();
    const vcpu = bench.boot(
      new GuestProgram()
        .set('rbx', BigInt(PRIVATE))
        .set('rax', 0x1122334455667788n)
        .store('rbx', 'rax')
        .addTo('rbx', 'rax')
        .set('rbx', BigInt(PRIVATE + 0x5ff8))
        .load('rcx', 'rbx')
        .hlt(),
    );
    expect(vcpu.run()).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(5);
    expect(bench.peekPrivate(PRIVATE)).toBe(0x22446688aaccef10n);
    expect(vcpu.getRegs().rcx).toBe(0n);
    expect(bench.calls.filter((call) => call.startsWith('gmem'))).toEqual(['gmem 256', 'gmem 261']);
  });

  it('a page that became shared and private again is mapped anew each time', () => {
    bench = new GuestBench();
    const program = new GuestProgram().set('rbx', BigInt(PRIVATE)).set('rdx', 0xf4n);
    for (const value of [1n, 2n, 3n]) program.set('rax', value).store('rbx', 'rax').out();
    const vcpu = bench.boot(program.hlt());
    const convert = (to: 'private' | 'shared'): void => {
      bench.invalidation.begin(0x100, 0x101);
      bench.mmu.zapRange(0x100 as never, 0x101 as never);
      bench.mmu.flushRemoteTlbs();
      if (to === 'private') bench.private.add(0x100);
      else bench.private.delete(0x100);
      bench.invalidation.finish();
    };
    vcpu.run();
    convert('shared');
    vcpu.run();
    convert('private');
    vcpu.run();
    expect(bench.peekPrivate(PRIVATE)).toBe(3n);
    expect(bench.memory.load64(bench.spa(PRIVATE))).toBe(2n);
  });

  it.each(['vmmcall', 'vmcall'] as const)(
    'asks for a conversion by %s and gets the answer in RAX',
    (call) => {
      bench = new GuestBench();
      const vcpu = bench.boot(
        new GuestProgram()
          .set('rax', 12n)
          .set('rbx', BigInt(PRIVATE))
          .set('rcx', 2n)
          .set('rdx', 0n)
          [call]()
          .set('rdx', 7n)
          .hlt(),
      );
      expect(vcpu.run()).toBe(0);
      const { kvmRun } = vcpu;
      expect([kvmRun.exitReason, kvmRun.hypercallArg(0), kvmRun.hypercallArg(1)]).toEqual([
        3,
        0x100_000n,
        2n,
      ]);
      kvmRun.hypercallRet = 0xffff_ffff_ffff_ffean;
      expect(vcpu.run()).toBe(0);
      expect(kvmRun.exitReason).toBe(5);
      expect(vcpu.getRegs()).toMatchObject({ rax: 0xffff_ffff_ffff_ffean, rdx: 7n });
    },
  );

  it('reads and writes a device by MMIO', () => {
    bench = new GuestBench();
    const vcpu = bench.boot(
      new GuestProgram().set('rbx', 0x4000_0010n).load('rax', 'rbx').addTo('rbx', 'rax').hlt(),
    );
    const { kvmRun } = vcpu;
    const asked: unknown[] = [];
    for (const value of [5, 100, 0]) {
      expect(vcpu.run()).toBe(0);
      asked.push([Number(kvmRun.mmioPhysAddr), kvmRun.mmioLen, kvmRun.mmioIsWrite, kvmRun.mmioData[0]]);
      if (kvmRun.mmioIsWrite === 0) kvmRun.mmioData[0] = value;
    }
    expect(asked).toEqual([
      [0x4000_0010, 8, 0, 0],
      [0x4000_0010, 8, 0, 0],
      [0x4000_0010, 8, 1, 105],
    ]);
    expect(vcpu.run()).toBe(0);
    expect(kvmRun.exitReason).toBe(5);
  });

  it('copies from a device to private memory that is not mapped yet', () => {
    bench = new GuestBench();
    const vcpu = bench.boot(
      new GuestProgram()
        .set('rsi', 0x4000_0010n)
        .set('rdi', BigInt(PRIVATE + 0x3008))
        .movsq()
        .hlt(),
    );
    expect(vcpu.run()).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(6);
    vcpu.kvmRun.mmioData.set([8, 7, 6, 5, 4, 3, 2, 1]);
    expect(vcpu.run()).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(5);
    expect(bench.peekPrivate(PRIVATE + 0x3008)).toBe(0x0102030405060708n);
  });

  it('whose private page is in a slot without a file leaves with −EFAULT at that very instruction', () => {
    bench = new GuestBench();
    const vcpu = bench.boot(new GuestProgram().set('rbx', 0x5123n).set('rax', 1n).store('rbx', 'rax').hlt());
    bench.private.add(5);
    expect(vcpu.run()).toBe(-14);
    const { kvmRun } = vcpu;
    expect([
      kvmRun.exitReason,
      kvmRun.memoryFaultFlags,
      kvmRun.memoryFaultGpa,
      kvmRun.memoryFaultSize,
    ]).toEqual([39, 8n, 0x5000n, 4096n]);
    expect(vcpu.getRegs().rip).toBe(BigInt(CODE + 20));
    bench.private.delete(5);
    expect(vcpu.run()).toBe(0);
    expect(kvmRun.exitReason).toBe(5);
    expect(bench.memory.load64((Number(bench.spa(0x5000)) + 0x123) as Spa)).toBe(1n);
  });

  it('learns from CPUID and the EFER MSR what KVM says', () => {
    bench = new GuestBench();
    const vcpu = bench.boot(new GuestProgram().set('rax', 0n).cpuid().set('rcx', 0xc0000080n).rdmsr().hlt());
    vcpu.run();
    expect(vcpu.getRegs()).toMatchObject({ rbx: 0x68747541n, rax: 0xd00n, rdx: 0n });
  });

  it('reads its time stamp counter by MSR as well', () => {
    bench = new GuestBench();
    const vcpu = bench.boot(new GuestProgram().set('rcx', 0x10n).rdmsr().hlt());
    expect(vcpu.run()).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(5);
    expect(vcpu.getRegs().rax).toBeGreaterThan(0n);
    expect(vcpu.getRegs().rax).toBeLessThan(100n);
  });

  it('without an IDT and with an undefined opcode shuts down', () => {
    bench = new GuestBench();
    const vcpu = bench.boot(new GuestProgram().ud2());
    expect(vcpu.run()).toBe(0);
    expect(vcpu.kvmRun.exitReason).toBe(8);
    expect(vcpu.getRegs().rip).toBe(0xfff0n);
  });

  it('that loops is interrupted each time slice, deterministically', () => {
    bench = new GuestBench(5000);
    const vcpu = bench.boot(new GuestProgram().forever());
    expect(vcpu.run()).toBe(-4);
    const first = vcpu.instructions;
    expect(first).toBeGreaterThanOrEqual(5000);
    expect(first).toBeLessThan(5100);
    expect(vcpu.run()).toBe(-4);
    expect(vcpu.kvmRun.exitReason).toBe(10);
  });

  it('that waits for its page does not keep another vCPU from running', async () => {
    bench = new GuestBench();
    let deliver = (): void => {};
    let there = false;
    bench.gmem = (gfn, into) => {
      if (there || gfn !== 0x105) return bench.give(`gmem ${gfn}`, into);
      into.pending = new Promise((resolve) => {
        deliver = resolve;
      });
      return 1;
    };
    const store = (at: number, value: bigint): GuestProgram =>
      new GuestProgram().set('rbx', BigInt(at)).set('rax', value).store('rbx', 'rax').hlt();
    const waiting = bench.boot(store(PRIVATE + 0x5000, 5n));
    const running = bench.boot(store(PRIVATE + 0x6000, 6n));
    expect(waiting.run()).toBe(1);
    expect(running.run()).toBe(0);
    expect(running.kvmRun.exitReason).toBe(5);
    expect(bench.peekPrivate(PRIVATE + 0x6000)).toBe(6n);
    there = true;
    deliver();
    await waiting.pending;
    expect(waiting.run()).toBe(0);
    expect(waiting.kvmRun.exitReason).toBe(5);
    expect(bench.peekPrivate(PRIVATE + 0x5000)).toBe(5n);
  });
});
