/**
 * The VMSA page that a vCPU of an SNP guest starts with, as far as it is measured (AMD64 APM volume 2, table B-4; reset values as QEMU with KVM,
 * Amazon EC2 and Google Compute Engine have them). A field that is not here is zero at the start.
 */
import { requireInteger, requireKnownFields, requireOneOf, requireU64 } from '../base/option-checks.ts';

export interface VmsaField {
  readonly name: string;
  readonly offset: number;
  readonly size: 1 | 2 | 4 | 8;
}

const segment = (name: string, offset: number): VmsaField[] => [
  { name: `${name}.selector`, offset, size: 2 },
  { name: `${name}.attributes`, offset: offset + 2, size: 2 },
  { name: `${name}.limit`, offset: offset + 4, size: 4 },
  { name: `${name}.base`, offset: offset + 8, size: 8 },
];
const u64s = (first: number, names: string): VmsaField[] =>
  names.split(' ').map((name, index) => ({ name, offset: first + 8 * index, size: 8 }));

/** Fields of the page in order; what lies between is reserved. */
export const VMSA_FIELDS: readonly VmsaField[] = [
  ...'es cs ss ds fs gs gdtr ldtr idtr tr'.split(' ').flatMap((name, index) => segment(name, 16 * index)),
  ...u64s(0xa0, 'pl0_ssp pl1_ssp pl2_ssp pl3_ssp u_cet'),
  { name: 'vmpl', offset: 0xca, size: 1 },
  { name: 'cpl', offset: 0xcb, size: 1 },
  ...u64s(0xd0, 'efer'),
  ...u64s(0x140, 'xss cr4 cr3 cr0 dr7 dr6 rflags rip dr0 dr1 dr2 dr3'),
  ...u64s(0x1a0, 'dr0_addr_mask dr1_addr_mask dr2_addr_mask dr3_addr_mask'),
  ...u64s(0x1d8, 'rsp s_cet ssp isst_addr rax star lstar cstar sfmask kernel_gs_base'),
  ...u64s(0x228, 'sysenter_cs sysenter_esp sysenter_eip cr2'),
  ...u64s(0x268, 'g_pat dbgctl br_from br_to last_excp_from last_excp_to'),
  { name: 'pkru', offset: 0x2e8, size: 4 },
  { name: 'tsc_aux', offset: 0x2ec, size: 4 },
  ...u64s(0x2f0, 'guest_tsc_scale guest_tsc_offset reg_prot_nonce'),
  ...u64s(0x308, 'rcx rdx rbx secure_avic_ctl rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15'),
  ...u64s(0x390, 'guest_exit_info_1 guest_exit_info_2 guest_exit_int_info guest_nrip'),
  ...u64s(0x3b0, 'sev_features vintr_ctrl guest_exit_code virtual_tom tlb_id pcpu_id event_inj xcr0'),
  ...u64s(0x400, 'x87_dp'),
  { name: 'mxcsr', offset: 0x408, size: 4 },
  ...['x87_ftw', 'x87_fsw', 'x87_fcw', 'x87_fop', 'x87_ds', 'x87_cs'].map(
    (name, index): VmsaField => ({ name, offset: 0x40c + 2 * index, size: 2 }),
  ),
  ...u64s(0x418, 'x87_rip'),
];

const FIELD = new Map(VMSA_FIELDS.map((field) => [field.name, field]));

/** Who runs the guest: what its vCPUs start with differs. */
export const VMM_TYPES = ['qemu', 'ec2', 'gce'] as const;
export type VmmType = (typeof VMM_TYPES)[number];

/** Where the first vCPU starts: 16 bytes below 4 GiB. */
export const BSP_EIP = 0xffff_fff0;

export interface VmsaOptions {
  readonly vmm: VmmType;
  readonly eip: number;
  /** SEV_FEATURES: bit 0 is SNP. */
  readonly guestFeatures: bigint;
  /** CPUID Fn0000_0001 EAX, which QEMU leaves in EDX. */
  readonly vcpuSignature: number;
}

const VMSA: Record<keyof VmsaOptions, true> = {
  vmm: true,
  eip: true,
  guestFeatures: true,
  vcpuSignature: true,
};
const U32 = 2 ** 32 - 1;

/** The page's 4096 bytes. RangeError: an option that is none, or cannot be what it is. */
export function resetVmsa(options: VmsaOptions): Uint8Array {
  requireKnownFields('vmsa', options, VMSA);
  const { vmm, eip, guestFeatures, vcpuSignature } = options;
  requireOneOf('vmm', vmm, VMM_TYPES);
  requireInteger('eip', eip, 0, U32);
  requireInteger('vcpuSignature', vcpuSignature, 0, U32);
  requireU64('guestFeatures', guestFeatures);
  const { page, set } = emptyVmsa();
  const isQemu = vmm === 'qemu';
  const isEc2 = vmm === 'ec2';
  const attributes: Record<string, number> = {
    es: 0x93,
    cs: isEc2 && eip === BSP_EIP ? 0x9a : 0x9b,
    ss: isEc2 ? 0x92 : 0x93,
    ds: 0x93,
    fs: 0x93,
    gs: 0x93,
    gdtr: 0,
    ldtr: 0x82,
    idtr: 0,
    tr: isEc2 ? 0x83 : 0x8b,
  };
  for (const [name, value] of Object.entries(attributes)) {
    set(`${name}.attributes`, value);
    set(`${name}.limit`, 0xffff);
  }
  set('cs.selector', 0xf000);
  set('cs.base', (eip & 0xffff_0000) >>> 0);
  set('rip', eip & 0xffff);
  set('efer', 0x1000);
  set('cr4', 0x40);
  set('cr0', 0x10);
  set('dr7', 0x400);
  set('dr6', 0xffff_0ff0);
  set('rflags', 2);
  set('g_pat', vmm === 'gce' ? 0x0007_0106 : 0x0007_0406_0007_0406n);
  set('rdx', isQemu ? vcpuSignature : 0x600);
  set('sev_features', guestFeatures);
  set('xcr0', 1);
  set('mxcsr', isQemu ? 0x1f80 : 0);
  set('x87_fcw', isQemu ? 0x37f : 0);
  return page;
}

export interface EntryVmsaOptions {
  readonly entry: bigint;
  /** Number of the vCPU. */
  readonly index: number;
  readonly guestFeatures: bigint;
  /** Addresses of the GDT and of the page tables. */
  readonly gdt: number;
  readonly tables: number;
}

/** The page of a vCPU that SoftCVM's VMM starts in 64-bit mode, without a firmware. */
export function entryVmsa({ entry, index, guestFeatures, gdt, tables }: EntryVmsaOptions): Uint8Array {
  const { page, set } = emptyVmsa();
  for (const name of ['es', 'cs', 'ss', 'ds', 'fs', 'gs']) {
    set(`${name}.selector`, name === 'cs' ? 8 : 16);
    set(`${name}.attributes`, name === 'cs' ? 0xa9b : 0xc93);
    set(`${name}.limit`, 0xffff_ffff);
  }
  set('gdtr.base', gdt);
  set('gdtr.limit', 23);
  set('ldtr.attributes', 0x82);
  set('ldtr.limit', 0xffff);
  set('tr.attributes', 0x8b);
  set('tr.limit', 0xffff);
  set('efer', 0x1d01);
  set('cr4', 0x660);
  set('cr3', tables);
  set('cr0', 0x8001_0033);
  set('dr7', 0x400);
  set('dr6', 0xffff_0ff0);
  set('rflags', 2);
  set('rip', entry);
  set('g_pat', 0x0007_0406_0007_0406n);
  set('rdi', index);
  set('sev_features', guestFeatures);
  set('xcr0', 1);
  set('mxcsr', 0x1f80);
  set('x87_fcw', 0x37f);
  return page;
}

function emptyVmsa(): { page: Uint8Array; set(name: string, value: number | bigint): void } {
  const page = new Uint8Array(4096);
  const view = new DataView(page.buffer);
  const set = (name: string, value: number | bigint): void => {
    const { offset, size } = FIELD.get(name)!;
    if (size === 8) view.setBigUint64(offset, BigInt(value), true);
    else if (size === 4) view.setUint32(offset, Number(value), true);
    else view.setUint16(offset, Number(value), true);
  };
  return { page, set };
}

/** The field that holds byte `offset` of the page; undefined: a reserved one, or part of a register file. */
export const vmsaFieldAt = (offset: number): VmsaField | undefined =>
  VMSA_FIELDS.find((field) => offset >= field.offset && offset < field.offset + field.size);

/** Largest family that CPUID can say: both of its fields all ones. */
const MAX_FAMILY = 0xf + 0xff;

/** CPUID Fn0000_0001 EAX of a family, model and stepping. RangeError: one that CPUID cannot say. */
export function vcpuSignature(family: number, model: number, stepping: number): number {
  requireInteger('family', family, 0, MAX_FAMILY);
  requireInteger('model', model, 0, 0xff);
  requireInteger('stepping', stepping, 0, 0xf);
  const low = Math.min(family, 0xf);
  const extended = (family - low) & 0xff;
  return (extended << 20) | ((model >> 4) << 16) | (low << 8) | ((model & 0xf) << 4) | (stepping & 0xf);
}

const NAPLES = vcpuSignature(23, 1, 2);
const ROME = vcpuSignature(23, 49, 0);
const MILAN = vcpuSignature(25, 1, 1);
const GENOA = vcpuSignature(25, 17, 0);
const TURIN = vcpuSignature(26, 0, 0);

/** Signatures of QEMU's vCPU types. */
export const VCPU_TYPES: Readonly<Record<string, number>> = {
  EPYC: NAPLES,
  'EPYC-v1': NAPLES,
  'EPYC-v2': NAPLES,
  'EPYC-IBPB': NAPLES,
  'EPYC-v3': NAPLES,
  'EPYC-v4': NAPLES,
  'EPYC-Rome': ROME,
  'EPYC-Rome-v1': ROME,
  'EPYC-Rome-v2': ROME,
  'EPYC-Rome-v3': ROME,
  'EPYC-Milan': MILAN,
  'EPYC-Milan-v1': MILAN,
  'EPYC-Milan-v2': MILAN,
  'EPYC-Genoa': GENOA,
  'EPYC-Genoa-v1': GENOA,
  'EPYC-Turin': TURIN,
};
