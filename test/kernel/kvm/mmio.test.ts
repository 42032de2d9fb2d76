import { afterEach, describe, expect, it } from 'vitest';
import type { Gpa } from '../../../src/base/address.ts';
import type { MmioBus } from '../../../src/kernel/kvm/svm/guest-core.ts';
import { exit, HLT, nestedFault, VcpuBench } from './vcpu-bench.ts';

let bench: VcpuBench;
afterEach(() => bench.close());
const WRITE = 6;
const READ = 4;

/** What the exit asks for: address, length, whether it is a write, and its 8 data bytes. */
const mmio = () => {
  const { kvmRun } = bench.vcpu;
  return {
    reason: kvmRun.exitReason,
    at: Number(kvmRun.mmioPhysAddr),
    length: kvmRun.mmioLen,
    write: kvmRun.mmioIsWrite,
    data: [...kvmRun.mmioData],
  };
};
const answer = (...bytes: number[]): void => {
  bench.vcpu.kvmRun.mmioData.fill(0);
  bench.vcpu.kvmRun.mmioData.set(bytes);
};

/** An instruction that does these accesses in turn and gives what it read to `seen`. */
function instruction(accesses: [at: number, size: number | number[]][], seen: number[][] = []) {
  return (_core: unknown, bus: MmioBus): 'done' | 'pending' => {
    const reads: number[][] = [];
    for (const [at, what] of accesses) {
      if (typeof what === 'number') {
        const into = new Uint8Array(what);
        if (!bus.read(at as Gpa, into)) return 'pending';
        reads.push([...into]);
      }
    }
    for (const [at, what] of accesses)
      if (typeof what !== 'number') bus.write(at as Gpa, Uint8Array.from(what));
    seen.push(...reads);
    return 'done';
  };
}

describe('MMIO', () => {
  it('a read asks the VMM and completes on the next run', () => {
    bench = new VcpuBench();
    const seen: number[][] = [];
    bench.scripted.emulation = instruction([[0xfee0_0030, 4]], seen);
    expect(bench.runScript(nestedFault(0xfee0_0030, READ))).toBe(0);
    expect(mmio()).toEqual({
      reason: 6,
      at: 0xfee0_0030,
      length: 4,
      write: 0,
      data: [0, 0, 0, 0, 0, 0, 0, 0],
    });
    expect(seen).toEqual([]);
    answer(1, 2, 3, 4);
    expect(bench.runScript(HLT)).toBe(0);
    expect(seen).toEqual([[1, 2, 3, 4]]);
  });

  it('a write is reported after the instruction, and the guest goes on', () => {
    bench = new VcpuBench();
    bench.scripted.emulation = instruction([[0x1_2345_6780, [9, 8, 7, 6, 5, 4, 3, 2]]]);
    expect(bench.runScript(nestedFault(0x1_2345_6780, WRITE))).toBe(0);
    expect(mmio()).toEqual({
      reason: 6,
      at: 0x1_2345_6780,
      length: 8,
      write: 1,
      data: [9, 8, 7, 6, 5, 4, 3, 2],
    });
    expect(bench.runScript(HLT)).toBe(0);
  });

  it('goes in pieces of eight bytes', () => {
    bench = new VcpuBench();
    const seen: number[][] = [];
    bench.scripted.emulation = instruction([[0x9000, 16]], seen);
    bench.runScript(nestedFault(0x9000, READ));
    expect(mmio()).toMatchObject({ at: 0x9000, length: 8 });
    answer(1, 2, 3, 4, 5, 6, 7, 8);
    expect(bench.vcpu.run()).toBe(0);
    expect(mmio()).toMatchObject({ at: 0x9008, length: 8, write: 0 });
    answer(9, 10, 11, 12, 13, 14, 15, 16);
    bench.runScript(HLT);
    expect(seen).toEqual([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]]);
  });

  it('writes go in pieces as well', () => {
    bench = new VcpuBench();
    bench.scripted.emulation = instruction([[0x9000, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]]]);
    bench.runScript(nestedFault(0x9000, WRITE));
    expect(mmio()).toMatchObject({ at: 0x9000, length: 8, data: [1, 2, 3, 4, 5, 6, 7, 8] });
    expect(bench.vcpu.run()).toBe(0);
    expect(mmio()).toMatchObject({ at: 0x9008, length: 2, data: [9, 10, 0, 0, 0, 0, 0, 0] });
    expect(bench.runScript(HLT)).toBe(0);
  });

  it('what an instruction read is kept until it completes, and then forgotten', () => {
    bench = new VcpuBench();
    const seen: number[][] = [];
    bench.scripted.emulation = instruction(
      [
        [0x9000, 1],
        [0xa000, 2],
      ],
      seen,
    );
    bench.runScript(nestedFault(0x9000, READ));
    answer(0x11);
    bench.vcpu.run();
    expect(mmio()).toMatchObject({ at: 0xa000, length: 2 });
    answer(0x22, 0x33);
    bench.runScript(nestedFault(0x9000, READ));
    expect(seen).toEqual([[0x11], [0x22, 0x33]]);
    expect(mmio()).toMatchObject({ reason: 6, at: 0x9000, length: 1 });
  });

  it('an instruction may read and then write', () => {
    bench = new VcpuBench();
    bench.scripted.emulation = (_core, bus) => {
      const byte = new Uint8Array(1);
      if (!bus.read(0x9000 as Gpa, byte)) return 'pending';
      bus.write(0x9000 as Gpa, Uint8Array.of(byte[0]! + 1));
      return 'done';
    };
    bench.runScript(nestedFault(0x9000, WRITE));
    answer(41);
    expect(bench.vcpu.run()).toBe(0);
    expect(mmio()).toMatchObject({ at: 0x9000, length: 1, write: 1, data: [42, 0, 0, 0, 0, 0, 0, 0] });
    expect(bench.runScript(HLT)).toBe(0);
  });

  it('with immediate_exit completes the read before it returns', () => {
    bench = new VcpuBench();
    const seen: number[][] = [];
    bench.scripted.emulation = instruction([[0x9000, 1]], seen);
    bench.runScript(nestedFault(0x9000, READ));
    answer(5);
    bench.vcpu.kvmRun.immediateExit = 1;
    expect(bench.vcpu.run()).toBe(-4);
    expect(seen).toEqual([[5]]);
  });

  it('a write to a read-only slot goes to the VMM, its memory is not changed', () => {
    bench = new VcpuBench();
    bench.addSlot({ flags: 2 });
    bench.scripted.emulation = instruction([[0x105_010, [1]]]);
    bench.runScript(nestedFault(0x105_010, WRITE));
    expect(mmio()).toMatchObject({ reason: 6, at: 0x105_010, length: 1, write: 1 });
    expect(bench.calls).toEqual([]);
  });

  it('a read of a read-only slot is a read of memory', () => {
    bench = new VcpuBench();
    bench.addSlot({ flags: 2 });
    const seen: number[][] = [];
    bench.scripted.emulation = instruction(
      [
        [0x105_004, 1],
        [0x9000, 1],
      ],
      seen,
    );
    const frame = bench.frame(`hva ${0x7000_0000 + 5 * 4096}`);
    bench.memory.write((frame * 4096 + 4) as never, Uint8Array.of(0xab));
    bench.runScript(nestedFault(0x9000, READ));
    expect(mmio()).toMatchObject({ at: 0x9000, length: 1 });
    answer(1);
    expect(bench.runScript(HLT)).toBe(0);
    expect(seen).toEqual([[0xab], [1]]);
  });

  it('memory that the instruction touches besides is memory', () => {
    bench = new VcpuBench();
    bench.addSlot({ flags: 0 });
    const seen: number[][] = [];
    bench.scripted.emulation = instruction(
      [
        [0x105_004, 2],
        [0x9000, 1],
        [0x106_000, [7, 7]],
      ],
      seen,
    );
    const frame = bench.frame(`hva ${0x7000_0000 + 5 * 4096}`);
    bench.memory.write((frame * 4096 + 4) as never, Uint8Array.of(0xab, 0xcd));
    bench.runScript(nestedFault(0x9000, READ));
    expect(mmio()).toMatchObject({ at: 0x9000, length: 1 });
    answer(1);
    expect(bench.runScript(HLT)).toBe(0);
    expect(seen).toEqual([[0xab, 0xcd], [1]]);
    const written = new Uint8Array(2);
    bench.memory.read((bench.frame(`hva ${0x7000_0000 + 6 * 4096}`) * 4096) as never, written);
    expect([...written]).toEqual([7, 7]);
  });

  it('memory besides that is private elsewhere ends in a memory fault', () => {
    bench = new VcpuBench();
    bench.addSlot({ flags: 0 });
    bench.private.add(0x105);
    bench.scripted.emulation = instruction([[0x105_004, 2]]);
    expect(bench.runScript(nestedFault(0x9000, READ))).toBe(-14);
    expect([bench.vcpu.kvmRun.exitReason, bench.vcpu.kvmRun.memoryFaultGpa]).toEqual([39, 0x105_000n]);
  });

  it('memory besides whose page comes later makes the vCPU wait, and asks the device once', () => {
    bench = new VcpuBench();
    bench.addSlot({ flags: 0 });
    let there = false;
    bench.shared = (hva, _access, into) => {
      if (there) return bench.give(`hva ${hva}`, into);
      into.pending = Promise.resolve();
      return 1;
    };
    const seen: number[][] = [];
    bench.scripted.emulation = instruction(
      [
        [0x9000, 1],
        [0x105_004, 2],
      ],
      seen,
    );
    bench.runScript(nestedFault(0x9000, READ));
    answer(3);
    expect(bench.vcpu.run()).toBe(1);
    there = true;
    expect(bench.runScript(HLT)).toBe(0);
    expect(seen).toEqual([[3], [0, 0]]);
  });

  it('an instruction that cannot be emulated is an internal error with its bytes', () => {
    bench = new VcpuBench();
    bench.scripted.code = [0x0f, 0xae, 0x00];
    expect(bench.runScript(nestedFault(0x9000, READ))).toBe(0);
    const { kvmRun } = bench.vcpu;
    expect([kvmRun.exitReason, kvmRun.internalErrorSuberror, kvmRun.internalErrorNdata]).toEqual([17, 1, 8]);
    expect(kvmRun.internalErrorData(0)).toBe(1n);
    expect([...kvmRun.bytes.subarray(0x30, 0x36)]).toEqual([3, 0x0f, 0xae, 0x00, 0x90, 0x90]);
    expect(kvmRun.internalErrorData(3)).toBe(0x400n);
    expect(kvmRun.internalErrorData(5)).toBe(0x9000n);
  });

  it('an instruction of user mode that cannot be emulated is undefined', () => {
    bench = new VcpuBench();
    bench.enterLongMode();
    bench.setSregs({ ss: { ...bench.vcpu.getSregs().ss, dpl: 3 } });
    expect(bench.runScript(nestedFault(0x9000, READ), HLT)).toBe(0);
    expect(bench.scripted.eventInjections[1]).toBe(0x8000_0306n);
  });

  it('an instruction that is intercepted while it is emulated takes its exit', () => {
    bench = new VcpuBench();
    bench.scripted.emulation = (core) => {
      exit(0x7f)(core);
      return 'exit';
    };
    expect(bench.runScript(nestedFault(0x9000, READ))).toBe(0);
    expect(bench.vcpu.kvmRun.exitReason).toBe(8);
  });

  it('an instruction that KVM carries out while it is emulated is not emulated again', () => {
    bench = new VcpuBench();
    bench.setRegs({ rip: 0x1000n });
    let emulations = 0;
    bench.scripted.emulation = (core) => {
      if (++emulations > 1) return 'failed';
      exit(0x89, 0n, 0n, 2)(core);
      return 'exit';
    };
    expect(bench.runScript(nestedFault(0x9000, READ), HLT)).toBe(0);
    expect([emulations, bench.vcpu.getRegs().rip]).toEqual([1, 0x1003n]);
  });

  it('an instruction whose code is private elsewhere ends in a memory fault', () => {
    bench = new VcpuBench();
    bench.addSlot({ flags: 0 });
    bench.private.add(0x105);
    let emulations = 0;
    bench.scripted.emulation = (core) => {
      if (++emulations > 1) return 'failed';
      nestedFault(0x105_000, 0x14)(core);
      return 'exit';
    };
    expect(bench.runScript(nestedFault(0x9000, READ))).toBe(-14);
    const { kvmRun } = bench.vcpu;
    expect([emulations, kvmRun.exitReason, kvmRun.memoryFaultGpa]).toEqual([1, 39, 0x105_000n]);
  });

  it('an instruction whose code is not mapped any more keeps what it read', () => {
    bench = new VcpuBench();
    bench.addSlot({ flags: 0 });
    const seen: number[][] = [];
    const accesses = instruction([[0x9000, 1]], seen);
    bench.scripted.emulation = accesses;
    bench.runScript(nestedFault(0x9000, READ));
    answer(0x77);
    bench.scripted.emulation = (core) => {
      nestedFault(0x105_000, 0x14)(core);
      bench.scripted.emulation = accesses;
      return 'exit';
    };
    expect(bench.runScript(HLT)).toBe(0);
    expect(seen).toEqual([[0x77]]);
  });

  it.each([
    ['page tables in no memory are', 0x2_0000_0004],
    ['code in no memory is', 0x1_0000_0014],
  ])('%s no MMIO', (_, error) => {
    bench = new VcpuBench();
    let calls = 0;
    bench.scripted.emulation = () => {
      calls++;
      return 'done';
    };
    expect(bench.runScript(nestedFault(0x9000, error))).toBe(0);
    expect([bench.vcpu.kvmRun.exitReason, calls]).toEqual([17, 0]);
  });
});

describe('INS', () => {
  it.each([
    ['alone asks for one element', 0x0060_0215n, 5n, 1],
    ['repeated asks for as many as RCX says', 0x0060_021dn, 5n, 5],
    ['of RCX its lower half counts', 0x0060_021dn, 0x7_0000_0005n, 5],
    ['with 32-bit addresses ECX says, up to 1024 bytes', 0x0060_011dn, 0x1_0005n, 1024],
    ['with 16-bit addresses CX says', 0x0060_009dn, 0x1_0005n, 5],
  ])('%s', (_name, info, rcx, count) => {
    bench = new VcpuBench();
    bench.setRegs({ rcx, rdi: 0x2000n });
    bench.scripted.emulation = (_core, bus) => (bus.portRead(0x60, new Uint8Array(1)) ? 'done' : 'pending');
    expect(bench.runScript(exit(0x7b, info, 0n, 1))).toBe(0);
    const { kvmRun } = bench.vcpu;
    const asked = [kvmRun.exitReason, kvmRun.ioDirection, kvmRun.ioPort, kvmRun.ioSize, kvmRun.ioCount];
    expect(asked).toEqual([2, 0, 0x60, 1, count]);
  });

  it.each([
    ['upwards, to its end', 0x2n, 0x2ffdn, 3],
    ['downwards, to its start', 0x402n, 0x2002n, 2],
  ])('repeated asks for no more than the page holds: %s', (_name, rflags, rdi, count) => {
    bench = new VcpuBench();
    bench.setRegs({ rcx: 9n, rdi, rflags });
    bench.scripted.emulation = (_core, bus) => (bus.portRead(0x60, new Uint8Array(1)) ? 'done' : 'pending');
    expect(bench.runScript(exit(0x7b, 0x0060_021dn, 0n, 1))).toBe(0);
    expect(bench.vcpu.kvmRun.ioCount).toBe(count);
  });

  it('that faults after it was answered loses the answers', () => {
    bench = new VcpuBench();
    bench.setRegs({ rcx: 5n, rdi: 0x2000n });
    let calls = 0;
    bench.scripted.emulation = (_core, bus) =>
      ++calls > 1 || bus.portRead(0x60, new Uint8Array(1)) ? 'done' : 'pending';
    expect(bench.runScript(exit(0x7b, 0x0060_021dn, 0n, 1))).toBe(0);
    expect(bench.runScript(HLT)).toBe(0);
    expect(calls).toBe(2);
  });
});
