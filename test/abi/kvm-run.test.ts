import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { KvmRun } from '../../src/abi/kvm-run.ts';
import { kvm_run, kvm_run_exits } from '../../src/abi/kvm-run-layout.ts';

const fresh = () => {
  const bytes = new Uint8Array(new SharedArrayBuffer(0x5000)).subarray(0x1000, 0x4000);
  return { bytes, view: new DataView(bytes.buffer, bytes.byteOffset), run: new KvmRun(bytes) };
};

describe('struct kvm_run', () => {
  it('has 2352 bytes and its members where linux/kvm.h has them', () => {
    expect(kvm_run.size).toBe(2352);
    expect(kvm_run.offsets).toMatchObject({
      request_interrupt_window: 0x00,
      immediate_exit: 0x01,
      exit_reason: 0x08,
      ready_for_interrupt_injection: 0x0c,
      if_flag: 0x0d,
      flags: 0x0e,
      cr8: 0x10,
      apic_base: 0x18,
      exit: 0x20,
      kvm_valid_regs: 0x120,
      kvm_dirty_regs: 0x128,
      s: 0x130,
    });
    expect(kvm_run.members.exit.size).toBe(256);
    expect(kvm_run.members.s.members.regs.offsets).toEqual({ regs: 0, sregs: 0x90, events: 0x1c8 });
  });

  it('has the exit union as the reference has it', () => {
    const at = Object.fromEntries(
      Object.entries(kvm_run_exits).map(([name, layout]) => ['offsets' in layout ? name : '', layout]),
    );
    const offsets = (name: string) => (at[name] as { offsets: Record<string, number> }).offsets;
    expect(offsets('io')).toEqual({ direction: 0, size: 1, port: 2, count: 4, data_offset: 8 });
    expect(offsets('mmio')).toEqual({ phys_addr: 0, data: 8, len: 0x10, is_write: 0x14 });
    expect(offsets('hypercall')).toEqual({ nr: 0, args: 8, ret: 0x38, flags: 0x40 });
    expect(offsets('internal')).toEqual({ suberror: 0, ndata: 4, data: 8 });
    expect(offsets('memory_fault')).toEqual({ flags: 0, gpa: 8, size: 0x10 });
    expect(offsets('fail_entry')).toEqual({ hardware_entry_failure_reason: 0, cpu: 8 });
    expect(offsets('debug')).toMatchObject({ exception: 0, pc: 8, dr6: 0x10, dr7: 0x18 });
    expect(offsets('msr')).toMatchObject({ error: 0, reason: 8, index: 0xc, data: 0x10 });
    expect(offsets('emulation_failure')).toEqual({
      suberror: 0,
      ndata: 4,
      flags: 8,
      insn_size: 0x10,
      insn_bytes: 0x11,
    });
    expect(offsets('snp_req_certs')).toEqual({ gpa: 0, npages: 8, ret: 0x10 });
  });
});

type NumberField = { [K in keyof KvmRun]: KvmRun[K] extends number ? K : never }[keyof KvmRun];
type BigField = { [K in keyof KvmRun]: KvmRun[K] extends bigint ? K : never }[keyof KvmRun];

describe('KvmRun', () => {
  const NUMBERS: [NumberField, number, 1 | 2 | 4][] = [
    ['requestInterruptWindow', 0x00, 1],
    ['immediateExit', 0x01, 1],
    ['exitReason', 0x08, 4],
    ['readyForInterruptInjection', 0x0c, 1],
    ['ifFlag', 0x0d, 1],
    ['flags', 0x0e, 2],
    ['ioDirection', 0x20, 1],
    ['ioSize', 0x21, 1],
    ['ioPort', 0x22, 2],
    ['ioCount', 0x24, 4],
    ['ioDataOffset', 0x28, 4],
    ['mmioPhysAddrNumber', 0x20, 4],
    ['mmioLen', 0x30, 4],
    ['mmioIsWrite', 0x34, 1],
    ['hypercallNrNumber', 0x20, 4],
    ['memoryFaultFlagsNumber', 0x20, 4],
    ['memoryFaultGpaNumber', 0x28, 4],
    ['memoryFaultSizeNumber', 0x30, 4],
    ['internalErrorSuberror', 0x20, 4],
    ['internalErrorNdata', 0x24, 4],
    ['failEntryCpu', 0x28, 4],
    ['msrError', 0x20, 1],
    ['msrReason', 0x28, 4],
    ['msrIndex', 0x2c, 4],
  ];
  it.each(NUMBERS)('%s lies at %i', (field, offset, size) => {
    const { bytes, run } = fresh();
    const value = size === 1 ? 0x5a : size === 2 ? 0x5a6b : 0x5a6b7c8d;
    (run as unknown as Record<string, number>)[field] = value;
    expect(run[field]).toBe(value);
    const want = [value & 0xff, (value >> 8) & 0xff, (value >> 16) & 0xff, value >>> 24].slice(0, size);
    expect([...bytes.subarray(offset, offset + size)]).toEqual(want);
    expect(bytes.reduce((count, byte) => count + (byte === 0 ? 0 : 1), 0)).toBe(size);
  });

  const BIG: [BigField, number][] = [
    ['cr8', 0x10],
    ['apicBase', 0x18],
    ['hardwareExitReason', 0x20],
    ['mmioPhysAddr', 0x20],
    ['hypercallNr', 0x20],
    ['hypercallRet', 0x58],
    ['hypercallFlags', 0x60],
    ['memoryFaultFlags', 0x20],
    ['memoryFaultGpa', 0x28],
    ['memoryFaultSize', 0x30],
    ['failEntryReason', 0x20],
    ['msrData', 0x30],
    ['validRegs', 0x120],
    ['dirtyRegs', 0x128],
  ];
  it.each(BIG)('%s is a u64 at %i', (field, offset) => {
    fc.assert(
      fc.property(fc.bigInt(0n, (1n << 64n) - 1n), (value) => {
        const { view, run } = fresh();
        (run as unknown as Record<string, bigint>)[field] = value;
        expect(run[field]).toBe(value);
        expect(view.getBigUint64(offset, true)).toBe(value);
      }),
      { numRuns: 30 },
    );
  });

  it('has number-valued siblings that agree with the u64', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }), (value) => {
        const { run } = fresh();
        run.memoryFaultGpaNumber = value;
        expect(run.memoryFaultGpa).toBe(BigInt(value));
        expect(run.memoryFaultGpaNumber).toBe(value);
        run.setHypercallArgNumber(3, value);
        expect(run.hypercallArg(3)).toBe(BigInt(value));
        run.mmioPhysAddr = BigInt(value);
        expect(run.mmioPhysAddrNumber).toBe(value);
      }),
    );
  });

  it('has hypercall arguments from 0x28 and error data from 0x28, 8 bytes apart', () => {
    const { view, run } = fresh();
    run.setHypercallArg(0, 1n);
    run.setHypercallArg(5, 0xffff_ffff_ffff_ffffn);
    expect(view.getBigUint64(0x28, true)).toBe(1n);
    expect(view.getBigUint64(0x50, true)).toBe(0xffff_ffff_ffff_ffffn);
    run.setInternalErrorData(15, 2n);
    expect(view.getBigUint64(0x28 + 15 * 8, true)).toBe(2n);
    expect(run.internalErrorData(15)).toBe(2n);
  });

  it.each([
    [1, 0xab, [0xab]],
    [2, 0xabcd, [0xcd, 0xab]],
    [4, 0xfedcba98, [0x98, 0xba, 0xdc, 0xfe]],
  ] as const)('reads and writes port data of %i bytes where data_offset says', (size, value, want) => {
    const { bytes, run } = fresh();
    run.ioSize = size;
    run.ioDataOffset = 0x1000;
    run.setIoValue(value, 1);
    expect([...bytes.subarray(0x1000 + size, 0x1000 + 2 * size)]).toEqual([...want]);
    expect(run.ioValue(1)).toBe(value);
  });

  it('shows the MMIO data bytes in place', () => {
    const { bytes, run } = fresh();
    run.mmioData[7] = 3;
    expect(bytes[0x2f]).toBe(3);
  });

  it('refuses a mapping that is too small', () => {
    expect(() => new KvmRun(new Uint8Array(4096))).toThrow('kvm_run: got 4096 bytes, want 12288');
  });
});
