/**
 * KVM_TRANSLATE: a linear address by the vCPU's page tables (Linux arch/x86/kvm/x86.c, kvm_arch_vcpu_ioctl_translate; mmu/paging_tmpl.h,
 * walk_addr_generic), as a supervisor's read. Tables are read where the process maps them.
 *
 * Left out: legacy and PAE paging (throw by name), accessed bits, which Linux' walk sets.
 */
import { SAVE } from '../../abi/vmcb.ts';
import { CR0, EFER, PTE } from '../../abi/x86.ts';
import { type Gpa, gfnOf, offsetBy, PAGE_SIZE, type Pfn, spaOf } from '../../base/address.ts';
import { NotImplementedError } from '../../base/errors.ts';
import type { Translation } from '../interface.ts';
import { type BackingPage, hvaOfGfn } from './mmu/guest-memory.ts';
import type { Vcpu } from './vcpu.ts';

const NX = 1n << 63n;
const FRAME = 0xf_ffff_ffff_f000n;
const NOWHERE = (1n << 64n) - 1n;
/** Bits of a linear address below the index of each level, the root first. */
const SHIFTS = [39n, 30n, 21n, 12n] as const;
const PAGE_SHIFT = 12n;
const ROOT_SHIFT = 39n;

export function translate(vcpu: Pick<Vcpu, 'vmcb' | 'cpuid' | 'vm'>, linearAddress: bigint): Translation {
  const physical = walk(vcpu, linearAddress);
  return {
    physicalAddress: physical ?? NOWHERE,
    valid: physical === undefined ? 0 : 1,
    writeable: 1,
    usermode: 0,
  };
}

function walk(vcpu: Pick<Vcpu, 'vmcb' | 'cpuid' | 'vm'>, address: bigint): bigint | undefined {
  const { vmcb, cpuid } = vcpu;
  if ((vmcb.saveWord(SAVE.CR0) & CR0.PG) === 0) return address;
  const efer = vmcb.saveWord(SAVE.EFER);
  if ((efer & EFER.LMA) === 0) throw new NotImplementedError('KVM_TRANSLATE outside of long mode');
  const beyondMemory = FRAME & ~((1n << BigInt(cpuid.physicalBits)) - 1n);
  const reserved = beyondMemory | ((efer & EFER.NXE) === 0 ? NX : 0n);
  let table = vmcb.save(SAVE.CR3) & FRAME;
  for (const shift of SHIFTS) {
    const entry = readGuest(vcpu, table + ((address >> shift) & 0x1ffn) * 8n);
    if (entry === undefined || (entry & BigInt(PTE.P)) === 0n || (entry & reserved) !== 0n) return undefined;
    // In the last table the bit is PAT.
    const large = (entry & BigInt(PTE.PS)) !== 0n;
    if (large && shift === ROOT_SHIFT) return undefined;
    if (large || shift === PAGE_SHIFT) {
      const offset = (1n << shift) - 1n;
      return (entry & FRAME & ~offset) | (address & offset);
    }
    table = entry & FRAME;
  }
  return undefined;
}

/** A u64 of guest memory; undefined where the process has none. */
function readGuest(vcpu: Pick<Vcpu, 'vmcb' | 'cpuid' | 'vm'>, gpa: bigint): bigint | undefined {
  const { vm } = vcpu;
  const at = Number(gpa) as Gpa;
  const gfn = gfnOf(at);
  const slot = vm.slots.find(gfn);
  if (slot === undefined) return undefined;
  const page: BackingPage = { pfn: 0 as Pfn, order: 0, writable: false, pending: undefined };
  const result = vm.faultInHva(hvaOfGfn(slot, gfn), 'read', page);
  if (result > 0) throw new NotImplementedError('KVM_TRANSLATE through a page that comes later');
  return result < 0 ? undefined : vm.memory.load64(offsetBy(spaOf(page.pfn), at % PAGE_SIZE));
}
