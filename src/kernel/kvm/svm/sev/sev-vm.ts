/**
 * A VM's side of SEV (struct kvm_sev_info; Linux arch/x86/kvm/svm/sev.c): KVM_MEMORY_ENCRYPT_OP, in the dispatcher's order of checks (reference facts 2.1, 2.2), and
 * what ends with the VM. SNP alone: SEV and SEV-ES guests have no launch commands here yet, and the VM types are refused.
 */
import { KVM_X86_DEFAULT_VM, KVM_X86_SNP_VM } from '../../../../abi/kvm.ts';
import { KVM_SEV, KVM_SEV_LAST_LEGACY, SVM_SEV_FEAT } from '../../../../abi/kvm-sev.ts';
import { SEV_CMD, snpAddress } from '../../../../abi/sev-firmware.ts';
import { SEV_STATUS } from '../../../../abi/sev-status.ts';
import { type Gfn, type Pfn, spaOf } from '../../../../base/address.ts';
import { LinuxError } from '../../../../base/errors.ts';
import type { HostMemory } from '../../../../hardware/memory/host-memory.ts';
import type { SevCommand } from '../../../interface.ts';
import type { Process } from '../../../process.ts';
import type { BackingPage, FaultSlot, GuestMemory } from '../../mmu/guest-memory.ts';
import type { Mmu } from '../../mmu/mmu.ts';
import type { KvmPolicy } from '../../policy.ts';
import type { Vcpu } from '../../vcpu.ts';
import type { SevHost } from './sev-host.ts';
import { launchFinish, launchStart, launchUpdate } from './snp-launch.ts';

const MAX_GHCB_VERSION = 2;

/** What SEV asks of its VM. */
export interface SevVmHost extends GuestMemory {
  readonly memory: HostMemory;
  readonly process: Process;
  readonly policy: GuestMemory['policy'] & KvmPolicy;
  readonly slots: { find(gfn: number): FaultSlot | undefined } & GuestMemory['slots'];
  readonly mmu: Mmu;
  /** A page of a guest_memfd without the RMP's part. */
  gmemGetUnprepared(slot: FaultSlot, gfn: Gfn, into: BackingPage): number;
  /** vCPUs that were ever created. */
  readonly vcpuCount: number;
  /** Those that are open, in the order of their ids. */
  openVcpus(): readonly Vcpu[];
}

export class SevVm {
  readonly vm: SevVmHost;
  readonly host: SevHost;
  /** INIT2 was done. */
  active = false;
  asid = 0;
  /** SEV_FEATURES of its VMSAs. */
  vmsaFeatures = 0n;
  ghcbVersion = 0;
  /** The /dev/sev by which KVM asks firmware for this guest: a descriptor of the process. */
  fd = -1;
  /** The guest's context page, once LAUNCH_START was done. */
  context: Pfn | undefined;
  policy = 0n;
  /** KVM_SEV_SNP_ENABLE_REQ_CERTS */
  certsEnabled = false;
  /** Where SEV-ES firmware left the APs' jump table. */
  apJumpTable = 0n;
  /** Pages that guest messages pass through: one that firmware reads, and one of firmware's own that it writes. */
  requestPage = -1 as Pfn;
  responsePage = -1 as Pfn;
  readonly messageBytes = new Uint8Array(4096);
  /** The launch is finished: the guest may run, and its memory be pre-faulted. */
  launched = false;

  constructor(vm: SevVmHost, host: SevHost) {
    this.vm = vm;
    this.host = host;
  }

  /** KVM_MEMORY_ENCRYPT_OP. `command.error` becomes firmware's status where firmware was asked, and else stays as it is. */
  memoryEncryptOp(command: SevCommand): void {
    const { id } = command;
    if (this.active && id < KVM_SEV.SNP_LAUNCH_START)
      throw new LinuxError('EPERM', `KVM_MEMORY_ENCRYPT_OP ${id}: not for an SNP guest`);
    switch (command.id) {
      case KVM_SEV.INIT2:
        this.#init2(command.data);
        break;
      case KVM_SEV.SNP_LAUNCH_START:
        launchStart(this, command);
        break;
      case KVM_SEV.SNP_LAUNCH_UPDATE:
        launchUpdate(this, command);
        break;
      case KVM_SEV.SNP_LAUNCH_FINISH:
        launchFinish(this, command);
        break;
      case KVM_SEV.SNP_ENABLE_REQ_CERTS:
        this.#enableCertificates();
        break;
      default:
        refuseSevCommand(id, KVM_X86_SNP_VM);
    }
  }

  /** Takes the nested mappings of [start, end) away, for all vCPUs. */
  zap(start: number, end: number): void {
    if (this.vm.mmu.zapRange(start as Gfn, end as Gfn)) this.vm.mmu.flushRemoteTlbs();
  }

  /** The VM's last holder is gone (sev_vm_destroy). */
  destroy(): void {
    const { psp, esAsids } = this.host;
    if (this.active) {
      this.vm.memory.free(this.requestPage, 0);
      psp.freePage(this.responsePage);
    }
    this.active = false;
    if (this.context !== undefined) {
      const status = psp.command(
        SEV_CMD.SNP_DECOMMISSION,
        snpAddress.encode({ address: BigInt(spaOf(this.context)) }),
      );
      // Without DECOMMISSION the ASID and the page stay the guest's.
      if (status !== SEV_STATUS.SUCCESS) {
        psp.leak(this.context);
        return;
      }
      psp.freePage(this.context);
      this.context = undefined;
    }
    if (this.asid !== 0) esAsids.giveBack(this.asid);
    this.asid = 0;
  }

  #init2(request: { vmsaFeatures: bigint; flags: number; ghcbVersion: number }): void {
    const { vmsaFeatures, flags, ghcbVersion } = request;
    if (this.vm.vcpuCount > 0) throw new LinuxError('EINVAL', 'KVM_SEV_INIT2: the VM has vCPUs');
    if (flags !== 0) throw new LinuxError('EINVAL', `KVM_SEV_INIT2: flags ${flags}, want 0`);
    const supported = supportedVmsaFeatures();
    if ((vmsaFeatures & ~supported) !== 0n)
      throw new LinuxError(
        'EINVAL',
        `KVM_SEV_INIT2: vmsa_features ${vmsaFeatures}, want a subset of ${supported}`,
      );
    if (ghcbVersion > MAX_GHCB_VERSION)
      throw new LinuxError('EINVAL', `KVM_SEV_INIT2: ghcb_version ${ghcbVersion}, want at most 2`);
    if (ghcbVersion === 1 && this.vm.policy.snpNeedsGhcbVersion2)
      throw new LinuxError('EINVAL', 'KVM_SEV_INIT2: ghcb_version 1, SNP wants 2');
    this.asid = this.host.esAsids.take();
    this.#allocateMessagePages();
    this.active = true;
    this.vmsaFeatures = vmsaFeatures | SVM_SEV_FEAT.SNP_ACTIVE;
    this.ghcbVersion = ghcbVersion === 0 ? MAX_GHCB_VERSION : ghcbVersion;
  }

  #allocateMessagePages(): void {
    const { memory } = this.vm;
    const request = memory.allocate(0, memory.owner('psp'));
    const response = request < 0 ? request : this.host.psp.allocatePage();
    if (response < 0) {
      if (request >= 0) memory.free(request as Pfn, 0);
      this.host.esAsids.giveBack(this.asid);
      this.asid = 0;
      throw new LinuxError(request < 0 ? 'ENOMEM' : 'EIO', 'KVM_SEV_INIT2: no pages for guest messages');
    }
    this.requestPage = request as Pfn;
    this.responsePage = response as Pfn;
  }

  #enableCertificates(): void {
    if (!this.active || this.vm.vcpuCount > 0 || !this.vm.policy.certificateExits)
      throw new LinuxError('EINVAL', 'KVM_SEV_SNP_ENABLE_REQ_CERTS: want an SNP guest without vCPUs');
    this.certsEnabled = true;
  }
}

/** Commands of SEV without SNP that Linux's switch lacks. */
const MISSING_COMMANDS: ReadonlySet<number> = new Set([
  KVM_SEV.SEND_UPDATE_VMSA,
  KVM_SEV.RECEIVE_UPDATE_VMSA,
  KVM_SEV.CERT_EXPORT,
]);
/** Commands that answer EINVAL to a VM that is no SNP guest. */
const INVALID_WITHOUT_SNP: ReadonlySet<number> = new Set([
  KVM_SEV.INIT2,
  KVM_SEV.SNP_LAUNCH_UPDATE,
  KVM_SEV.SNP_ENABLE_REQ_CERTS,
]);

/** What a VM that is not, or not yet, an encrypted guest answers to a command. Errors: EINVAL, ENOTTY. */
export function refuseSevCommand(id: number, vmType: number): never {
  const known = (id <= KVM_SEV_LAST_LEGACY && !MISSING_COMMANDS.has(id)) || isSnpCommand(id);
  if (!known) throw new LinuxError('EINVAL', `KVM_MEMORY_ENCRYPT_OP ${id}: no such command`);
  const isInit = id === KVM_SEV.INIT || id === KVM_SEV.ES_INIT;
  if (INVALID_WITHOUT_SNP.has(id) || (isInit && vmType !== KVM_X86_DEFAULT_VM))
    throw new LinuxError('EINVAL', `KVM_MEMORY_ENCRYPT_OP ${id}: not for a VM of type ${vmType}`);
  throw new LinuxError('ENOTTY', `KVM_MEMORY_ENCRYPT_OP ${id}: the VM is no SEV guest`);
}

const isSnpCommand = (id: number): boolean =>
  id >= KVM_SEV.SNP_LAUNCH_START && id <= KVM_SEV.SNP_ENABLE_REQ_CERTS;

/** KVM_X86_SEV_VMSA_FEATURES. DebugSwap and Secure TSC need what the core has not. */
export const supportedVmsaFeatures = (): bigint => 0n;
