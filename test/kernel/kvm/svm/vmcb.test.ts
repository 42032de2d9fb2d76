/** KVM tells the processor which fields of the VMCB it changed: the clean bit of each group, as the reference's table has them. */
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Spa } from '../../../../src/base/address.ts';
import { Trace } from '../../../../src/base/trace.ts';
import { HostMemory } from '../../../../src/hardware/memory/host-memory.ts';
import { Vmcb } from '../../../../src/kernel/kvm/svm/vmcb.ts';

let memory: HostMemory;
let vmcb: Vmcb;
beforeEach(() => {
  memory = HostMemory.create({ bytes: 1 << 20, trace: new Trace() });
  vmcb = new Vmcb(memory, (memory.allocate(0, memory.owner('test')) * 4096) as Spa);
});
afterEach(() => memory.close());

const clean = (): number => vmcb.word(0xc0);
/** All but INTERRUPT (3) and CR2 (9), which KVM never sets, and those of features that are off. */
const ALL = 0x0df7;

it('a new VMCB has no clean bit', () => {
  vmcb.initControl({
    nestedRoot: 0x1000 as Spa,
    ioPermissions: 0x2000 as Spa,
    msrPermissions: 0x3000 as Spa,
    asid: 1,
  });
  expect(clean()).toBe(0);
});

describe('a write clears the bit of its group', () => {
  const rows: [string, number, number][] = [
    ['intercepts of CR', 0x000, 0],
    ['intercepts of word 5', 0x014, 0],
    ['TSC offset', 0x050, 0],
    ['IOPM base', 0x040, 1],
    ['MSRPM base', 0x048, 1],
    ['ASID', 0x058, 2],
    ['nested control', 0x090, 4],
    ['nested root', 0x0b0, 4],
    ['G_PAT', 0x668, 4],
    ['CR0', 0x558, 5],
    ['CR3', 0x550, 5],
    ['CR4', 0x548, 5],
    ['EFER', 0x4d0, 5],
    ['DR6', 0x568, 6],
    ['DR7', 0x560, 6],
    ['GDTR limit', 0x464, 7],
    ['GDTR base', 0x468, 7],
    ['IDTR base', 0x488, 7],
    ['ES', 0x400, 8],
    ['CS base', 0x418, 8],
    ['SS limit', 0x424, 8],
    ['DS', 0x430, 8],
    ['CPL', 0x4c8, 8],
    ['DBGCTL', 0x670, 10],
  ];
  it.each(rows)('%s (0x%s): bit %i', (_name, offset, bit) => {
    vmcb.markAllClean();
    vmcb.setWord(offset, 5);
    expect(clean()).toBe(ALL & ~(1 << bit));
    vmcb.markAllClean();
    vmcb.setLong(offset & ~7, 5n);
    expect(clean() & (1 << bit)).toBe(0);
  });

  it.each([
    ['RIP', 0x578],
    ['RSP', 0x5d8],
    ['RAX', 0x5f8],
    ['RFLAGS', 0x570],
    ['EVENTINJ', 0x0a8],
    ['TLB_CONTROL', 0x05c],
    ['the interrupt shadow', 0x068],
    ['NEXT_RIP', 0x0c8],
  ])('%s has none', (_name, offset) => {
    vmcb.markAllClean();
    vmcb.setWord(offset, 5);
    vmcb.injectEvent(0xb0d, 0);
    vmcb.skipInstruction();
    expect(clean()).toBe(ALL);
  });

  it.each([
    ['FS base', 0x448],
    ['GS', 0x450],
    ['LDTR', 0x470],
    ['TR base', 0x498],
    ['STAR', 0x600],
    ['KERNEL_GS_BASE', 0x620],
    ['SYSENTER_EIP', 0x638],
  ])('%s, which VMLOAD would load, goes with the segments', (_name, offset) => {
    vmcb.markAllClean();
    vmcb.setLong(offset, 5n);
    expect(clean()).toBe(ALL & ~(1 << 8));
  });
});
