/**
 * The launch of an SNP guest (Linux arch/x86/kvm/svm/sev.c, snp_launch_start, snp_launch_update, snp_launch_finish, sev_gmem_post_populate; virt/kvm/guest_memfd.c,
 * kvm_gmem_populate). The checks stand in the order of reference facts 2.4 to 2.6.
 */
import { KVM_MEM_GUEST_MEMFD } from '../../../../abi/kvm.ts';
import {
  SEV_CMD,
  SNP_LAUNCH_FINISH_FLAG,
  SNP_PAGE_TYPE,
  SNP_POLICY,
  snpActivate,
  snpAddress,
  snpLaunchFinish,
  snpLaunchStart,
  snpLaunchUpdate,
} from '../../../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../../../abi/sev-status.ts';
import {
  type Gfn,
  gfn,
  gpa,
  gpaOf,
  type Hva,
  hva,
  PAGE_SIZE,
  type Pfn,
  spaOf,
} from '../../../../base/address.ts';
import { ERRNO, LinuxError } from '../../../../base/errors.ts';
import { commandFailure } from '../../../ccp/psp.ts';
import { isSevDevice } from '../../../ccp/sev-device.ts';
import { makePrivate } from '../../../host-rmp.ts';
import type {
  ProcessMemory,
  SnpLaunchFinishCommand,
  SnpLaunchStartCommand,
  SnpLaunchUpdateCommand,
} from '../../../interface.ts';
import type { BackingPage, FaultSlot } from '../../mmu/guest-memory.ts';
import type { SevVm } from './sev-vm.ts';
import type { VcpuSev } from './vcpu-sev.ts';

const LEVEL_4K = 1;
const PAGE = 4096n;
const USER_PAGE_TYPES: ReadonlySet<number> = new Set([
  SNP_PAGE_TYPE.NORMAL,
  SNP_PAGE_TYPE.ZERO,
  SNP_PAGE_TYPE.UNMEASURED,
  SNP_PAGE_TYPE.SECRETS,
  SNP_PAGE_TYPE.CPUID,
]);
/** GPA of a VMSA in the RMP and in the launch digest: no guest physical address. */
const VMSA_GPA = gpa(0xffff_ffff_f000);

/**
 * Has firmware execute a command for the holder of a /dev/sev (__sev_issue_cmd). Returns the status, which `command.error` becomes, or −errno: EBADF where `fd` is none of
 * /dev/sev, and Psp's.
 */
function issue(
  sev: SevVm,
  fd: number,
  command: { error?: number },
  number: number,
  buffer: Uint8Array,
): number {
  if (!isSevDevice(sev.vm.process.files, fd)) return -ERRNO.EBADF;
  return sev.host.psp.command(number, buffer, command);
}

/** Errors in order: ENOTTY (no INIT2), EINVAL (context, flags, policy), ENOTTY (no context; sev_fd), EIO. */
export function launchStart(sev: SevVm, command: SnpLaunchStartCommand): void {
  if (!sev.active) throw new LinuxError('ENOTTY', 'KVM_SEV_SNP_LAUNCH_START: KVM_SEV_INIT2 was not done');
  const { policy, gosvw, flags } = command.data;
  if (sev.context !== undefined) throw new LinuxError('EINVAL', 'KVM_SEV_SNP_LAUNCH_START: done before');
  if (flags !== 0) throw new LinuxError('EINVAL', `KVM_SEV_SNP_LAUNCH_START: flags ${flags}, want 0`);
  checkPolicy(sev, policy);
  const { psp } = sev.host;
  const context = psp.allocatePage();
  if (context < 0) throw new LinuxError('ENOTTY', 'KVM_SEV_SNP_LAUNCH_START: no page for the guest context');
  const create = snpAddress.encode({ address: BigInt(spaOf(context)) });
  const created = issue(sev, command.sevFd, command, SEV_CMD.SNP_GCTX_CREATE, create);
  if (created !== SEV_STATUS.SUCCESS) {
    psp.freePage(context);
    const { message } = commandFailure('SNP_GCTX_CREATE', created);
    throw new LinuxError('ENOTTY', `KVM_SEV_SNP_LAUNCH_START: no guest context: ${message}`);
  }
  sev.context = context;
  const start = snpLaunchStart.encode({ context: BigInt(spaOf(context)), policy, gosvw });
  const started = issue(sev, command.sevFd, command, SEV_CMD.SNP_LAUNCH_START, start);
  if (started !== SEV_STATUS.SUCCESS) {
    destroyContext(sev);
    throw commandFailure('KVM_SEV_SNP_LAUNCH_START', started);
  }
  sev.policy = policy;
  sev.fd = command.sevFd;
  const activate = snpActivate.encode({ context: BigInt(spaOf(context)), asid: sev.asid });
  const activated = issue(sev, command.sevFd, command, SEV_CMD.SNP_ACTIVATE, activate);
  if (activated === SEV_STATUS.SUCCESS) return;
  destroyContext(sev);
  throw commandFailure('KVM_SEV_SNP_LAUNCH_START (ACTIVATE)', activated);
}

/** DECOMMISSION, and the page back; leaked where firmware keeps it. */
function destroyContext(sev: SevVm): void {
  const { psp } = sev.host;
  const context = sev.context!;
  sev.context = undefined;
  const status = psp.command(
    SEV_CMD.SNP_DECOMMISSION,
    snpAddress.encode({ address: BigInt(spaOf(context)) }),
  );
  if (status === SEV_STATUS.SUCCESS) psp.freePage(context);
  else psp.leak(context);
}

function checkPolicy(sev: SevVm, policy: bigint): void {
  const refuse = (what: string): never => {
    throw new LinuxError('EINVAL', `KVM_SEV_SNP_LAUNCH_START: policy 0x${policy.toString(16)}: ${what}`);
  };
  const supported = snpPolicyBits(sev);
  if ((policy & ~supported) !== 0n) refuse(`want a subset of 0x${supported.toString(16)}`);
  if ((policy & SNP_POLICY.RESERVED_MUST_BE_ONE) === 0n) refuse('bit 17 must be 1');
  if (sev.vm.policy.snpPolicyNeedsSmt && (policy & SNP_POLICY.SMT) === 0n) refuse('SMT (bit 16) must be 1');
}

/** KVM_X86_SNP_POLICY_BITS: what this kernel takes, of what firmware knows. */
export function snpPolicyBits(sev: Pick<SevVm, 'vm' | 'host'>): bigint {
  return sev.vm.policy.snpPolicyBits & sev.host.machine.policyBits;
}

class Page implements BackingPage {
  pfn = 0 as Pfn;
  order = 0;
  writable = false;
  pending: Promise<void> | undefined = undefined;
}

/** Errors: EINVAL, EIO. Progress is written back into `command.data`: loop until `len` is 0. */
export function launchUpdate(sev: SevVm, command: SnpLaunchUpdateCommand): void {
  const call = 'KVM_SEV_SNP_LAUNCH_UPDATE';
  if (sev.context === undefined) throw new LinuxError('EINVAL', `${call}: LAUNCH_START was not done`);
  const { data } = command;
  const { vm } = sev;
  const strict = vm.policy.snpUpdateChecksRange;
  const isZero = data.type === SNP_PAGE_TYPE.ZERO;
  if (data.flags !== 0 || data.len % PAGE !== 0n || !USER_PAGE_TYPES.has(data.type))
    throw new LinuxError('EINVAL', `${call}: flags ${data.flags}, len ${data.len}, type ${data.type}`);
  if (strict && (data.len === 0n || (!isZero && data.uaddr % PAGE !== 0n)))
    throw new LinuxError('EINVAL', `${call}: uaddr 0x${data.uaddr.toString(16)}, len ${data.len}`);
  const first = gfn(Number(data.gfnStart));
  const slot = vm.slots.find(first);
  if (slot === undefined || (slot.flags & KVM_MEM_GUEST_MEMFD) === 0)
    throw new LinuxError('EINVAL', `${call}: no guest_memfd at gfn 0x${data.gfnStart.toString(16)}`);
  const wanted = Number(data.len / PAGE);
  const count = Math.min(wanted, slot.npages - (first - slot.baseGfn));
  const buffer = snpLaunchUpdate.encode({ context: BigInt(spaOf(sev.context)), flags: data.type << 1 });
  const update: Update = {
    ...{ slot, type: data.type, sevFd: command.sevFd, error: 0, page: new Page(), buffer },
    address: new DataView(buffer.buffer, snpLaunchUpdate.offsets.address, 8),
  };
  const uaddr = Number(data.uaddr);
  let done = 0;
  let failure: LinuxError | undefined;
  for (; done < count; done++) {
    const source = isZero ? undefined : hva(uaddr + done * PAGE_SIZE);
    failure = addPage(sev, update, (first + done) as Gfn, source);
    if (failure !== undefined) break;
  }
  if (done === 0) {
    command.error = update.error;
    throw failure ?? new LinuxError('EIO', `${call}: no page was added`);
  }
  data.gfnStart += BigInt(done);
  data.len -= BigInt(done) * PAGE;
  if (!isZero) data.uaddr += BigInt(done) * PAGE;
}

/** What the pages of a LAUNCH_UPDATE have in common. */
interface Update {
  readonly slot: FaultSlot;
  /** SNP_PAGE_TYPE */
  readonly type: number;
  readonly sevFd: number;
  /** Firmware's status for the last page. */
  error: number;
  readonly page: Page;
  /** Firmware's command, and where the page's address goes in it. */
  readonly buffer: Uint8Array;
  readonly address: DataView;
}

/** One page from the VMM into the guest, measured and encrypted. Returns why not. */
function addPage(sev: SevVm, update: Update, at: Gfn, source: Hva | undefined): LinuxError | undefined {
  const { page, type } = update;
  const { vm, host } = sev;
  const { memory } = vm;
  const { memory: user } = vm.process;
  // First: whoever brings the source's pages may take the guest's away.
  if (source !== undefined && user.faultInToRead(source, PAGE_SIZE) !== 0)
    return notAdded(at, `source 0x${source.toString(16)} cannot be read`);
  const got = vm.gmemGetUnprepared(update.slot, at, page);
  if (got !== 0) return notAdded(at, `no page, errno ${-got}`);
  const frame = page.pfn;
  if (!vm.attributes.isPrivate(at)) return notAdded(at, 'its attribute is not PRIVATE');
  if (memory.rmp!.assigned(frame)) return notAdded(at, 'it is the guest’s already');
  if (source !== undefined && user.copyPresentTo(source, spaOf(frame), PAGE_SIZE) !== 0)
    return notAdded(at, `source 0x${source.toString(16)} is gone again`);
  if (
    makePrivate(memory, frame, { gpa: gpaOf(at), level: LEVEL_4K, asid: sev.asid, state: 'pre-guest' }) !== 0
  )
    return notAdded(at, 'RMPUPDATE failed');
  update.address.setUint32(0, spaOf(frame), true);
  const status = issue(sev, update.sevFd, update, SEV_CMD.SNP_LAUNCH_UPDATE, update.buffer);
  if (status === SEV_STATUS.SUCCESS) return undefined;
  if (host.psp.reclaim(frame) && type === SNP_PAGE_TYPE.CPUID && status === SEV_STATUS.INVALID_PARAM) {
    // The page holds what firmware would accept.
    const bytes = new Uint8Array(PAGE_SIZE);
    memory.read(spaOf(frame), bytes);
    if (source !== undefined) copyToUser(vm.process.memory, source, bytes);
  }
  return notAdded(at, commandFailure('SNP_LAUNCH_UPDATE', status).message);
}

const notAdded = (at: Gfn, reason: string): LinuxError =>
  new LinuxError('EIO', `KVM_SEV_SNP_LAUNCH_UPDATE: gfn 0x${at.toString(16)}: ${reason}`);

/** Linux says nothing where this fails. */
function copyToUser(memory: ProcessMemory, to: Hva, bytes: Uint8Array): void {
  try {
    memory.write(to, bytes);
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
  }
}

/** Errors: ENOTTY, EINVAL, ENOMEM, EBADF, EIO. */
export function launchFinish(sev: SevVm, command: SnpLaunchFinishCommand): void {
  const call = 'KVM_SEV_SNP_LAUNCH_FINISH';
  if (!sev.active) throw new LinuxError('ENOTTY', `${call}: KVM_SEV_INIT2 was not done`);
  if (sev.context === undefined) throw new LinuxError('EINVAL', `${call}: LAUNCH_START was not done`);
  const { data } = command;
  if (data.flags !== 0) throw new LinuxError('EINVAL', `${call}: flags ${data.flags}, want 0`);
  for (const vcpu of sev.vm.openVcpus()) addVmsa(sev, command, vcpu.sev!);
  const pages: Pfn[] = [];
  const lend = (bytes: Uint8Array): bigint => {
    const frame = sev.vm.memory.allocate(0, sev.vm.memory.owner('psp'));
    if (frame < 0) throw new LinuxError('ENOMEM', `${call}: no frame for the ID block`);
    pages.push(frame as Pfn);
    sev.vm.memory.write(spaOf(frame as Pfn), bytes);
    return BigInt(spaOf(frame as Pfn));
  };
  let flags = data.vcekDisabled ? SNP_LAUNCH_FINISH_FLAG.VCEK_DISABLED : 0n;
  try {
    let idBlock = 0n;
    let idAuth = 0n;
    if (data.id !== undefined) {
      idBlock = lend(data.id.block);
      idAuth = lend(data.id.auth);
      flags |= SNP_LAUNCH_FINISH_FLAG.ID_BLOCK_EN;
      if (data.id.authorKeyEnabled) flags |= SNP_LAUNCH_FINISH_FLAG.AUTH_KEY_EN;
    }
    const context = BigInt(spaOf(sev.context));
    const finish = snpLaunchFinish.encode({ context, idBlock, idAuth, flags, hostData: data.hostData });
    const status = issue(sev, sev.fd, command, SEV_CMD.SNP_LAUNCH_FINISH, finish);
    if (status !== SEV_STATUS.SUCCESS) throw commandFailure(call, status);
  } finally {
    for (const frame of pages) sev.vm.memory.free(frame, 0);
  }
  sev.launched = true;
}

/** A VMSA becomes the guest's: measured last, in the order of the vCPUs (snp_launch_update_vmsa). */
function addVmsa(sev: SevVm, command: SnpLaunchFinishCommand, vcpu: VcpuSev): void {
  const { memory } = sev.vm;
  const { psp } = sev.host;
  const vmsa = vcpu.synchroniseVmsa();
  const state = { gpa: VMSA_GPA, level: LEVEL_4K, asid: sev.asid, state: 'pre-guest' as const };
  if (makePrivate(memory, vmsa.frame, state) !== 0)
    throw new LinuxError('EIO', 'KVM_SEV_SNP_LAUNCH_FINISH: RMPUPDATE of a VMSA failed');
  const update = snpLaunchUpdate.encode({
    context: BigInt(spaOf(sev.context!)),
    flags: SNP_PAGE_TYPE.VMSA << 1,
    address: BigInt(spaOf(vmsa.frame)),
  });
  const status = issue(sev, command.sevFd, command, SEV_CMD.SNP_LAUNCH_UPDATE, update);
  if (status !== SEV_STATUS.SUCCESS) {
    psp.reclaim(vmsa.frame);
    throw commandFailure('KVM_SEV_SNP_LAUNCH_FINISH: a VMSA', status);
  }
  vmsa.protect();
}
