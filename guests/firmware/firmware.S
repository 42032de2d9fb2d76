/*
 * A firmware for SNP guests that does as little as one can: from the reset vector to 64-bit mode, then to a guest of ours, as if the VMM had started it directly
 * (src/vmm/loaders/snp-boot.ts says what it finds). Its end is laid out like edk2's OvmfPkg/ResetVector, so that whoever launches or measures OVMF can do so with it.
 *
 * PAYLOAD: a guest's bytes from START on, its first address; END: where its memory ends; ENTRY: where it begins; SIZE: of the image.
 *
 *     0xfffffff0   16-bit: where the first vCPU starts
 *     start_16     to protected mode
 *     start_32     is this an SNP guest? The C-bit's place by CPUID, whose #VC asks the host by the MSR protocol. Enough page tables for
 *     start_64     the GHCB and the host's page become shared; the rest of the tables; the payload is copied
 *     hold         16-bit: where the other vCPUs start, to wait until the guest makes them anew
 *
 * Memory that the launch leaves to the firmware is what its metadata lists below, with a page for the hashes of a kernel, which it does not load.
 */
#define BASE (0x100000000 - SIZE)
#define AT(label) (BASE + (label) - image)

#define GDT 0x1000
#define PML4 0x2000
#define PDPT 0x3000
#define DIRECTORIES 0x4000
#define FIRST_TABLE 0x8000
#define STACK 0x9000
#define SECRETS 0x9000
#define GHCB 0xa000
#define HOST_PAGE 0xb000
#define KERNEL_HASHES 0xc000
#define CPUID_PAGE 0xd000

#define EFER 0xc0000080
#define GHCB_MSR 0xc0010130
#define SEV_STATUS 0xc0010131
#define CPUID_SEV 0x8000001f
#define EVENT_CPUID 0x72
#define VECTOR_VC 29
#define VMGEXIT .byte 0xf3, 0x0f, 0x01, 0xd9

#define CODE_64 0x08
#define DATA 0x10
#define CODE_32 0x18

        .text
image:
payload:
        .incbin PAYLOAD
payload_end:

        .balign 16
gdt:    .quad   0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   AT(gdt)
boot_gdt_pointer:
        .word   3 * 8 - 1
        .quad   GDT
        .balign 8
idt:    .skip   8 * VECTOR_VC, 0
        .word   (AT(vc)) & 0xffff, CODE_32, 0x8e00, (AT(vc)) >> 16
idt_end:
idt_pointer:
        .word   idt_end - idt - 1
        .long   AT(idt)
entry:  .quad   ENTRY
not_snp:
        .ascii  "This firmware starts SNP guests.\n"
not_snp_end:

        .code16
start_16:
        cli
        cld
        movl    %edx, %esp              # the CPU's signature; nobody wants it
        lgdtl   %cs:(gdt_pointer - image + BASE) & 0xffff
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $CODE_32, $AT(start_32)

        # A vCPU that is not the first: AP reset hold, without end.
hold:
        cli
        movl    $GHCB_MSR, %ecx
        movl    $6, %eax
        xorl    %edx, %edx
        wrmsr
        VMGEXIT
        jmp     hold

        .code32
start_32:
        movl    $DATA, %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %fs
        movl    %eax, %gs
        movl    %eax, %ss
        movl    $STACK, %esp
        lidt    AT(idt_pointer)
        movl    $0x80000000, %eax
        cpuid
        cmpl    $CPUID_SEV, %eax
        jb      plain
        movl    $CPUID_SEV, %eax
        cpuid
        testb   $2, %al                 # SEV
        jz      plain
        andl    $0x3f, %ebx
        movl    $SEV_STATUS, %ecx
        rdmsr
        testb   $4, %al                 # SNP
        jz      plain
        # The bit's place, as the host tells the guest too.
        movl    $2, %eax
        xorl    %edx, %edx
        movl    $GHCB_MSR, %ecx
        wrmsr
        VMGEXIT
        rdmsr
        movl    %eax, %esi
        andl    $0xfff, %esi
        cmpl    $1, %esi
        jne     no_protocol
        cmpw    $2, %dx                 # lowest version
        ja      no_protocol
        shrl    $16, %edx               # highest version
        cmpl    $2, %edx
        jb      no_protocol
        shrl    $24, %eax
        cmpl    %ebx, %eax
        jne     no_protocol
        subb    $32, %bl
        movl    %ebx, %ecx
        movl    $1, %ebp
        shll    %cl, %ebp               # the C-bit, in the upper half of an entry

        # Only what the way to start_64 needs: the first 2 MiB, and the last.
        movl    $PDPT | 0x23, PML4
        movl    %ebp, PML4 + 4
        movl    $DIRECTORIES | 0x23, PDPT
        movl    %ebp, PDPT + 4
        movl    $(DIRECTORIES + 0x3000) | 0x23, PDPT + 3 * 8
        movl    %ebp, PDPT + 3 * 8 + 4
        movl    $0xe3, DIRECTORIES
        movl    %ebp, DIRECTORIES + 4
        movl    $0xffe000e3, DIRECTORIES + 0x3000 + 511 * 8
        movl    %ebp, DIRECTORIES + 0x3000 + 511 * 8 + 4

        movl    %cr4, %eax
        orl     $0x620, %eax            # PAE, OSFXSR, OSXMMEXCPT
        movl    %eax, %cr4
        movl    $PML4, %eax
        movl    %eax, %cr3
        movl    $EFER, %ecx
        rdmsr
        orl     $0x901, %eax            # SCE, LME, NXE
        wrmsr
        movl    $0x80010033, %eax       # PG, WP, NE, ET, MP, PE
        movl    %eax, %cr0
        ljmpl   $CODE_64, $AT(start_64)

        # #VC: CPUID alone. The answer comes register by register.
vc:
        cmpl    $EVENT_CPUID, (%esp)
        jne     failed
        movl    %eax, %edi
        .irp    register, 0, 1, 2, 3
        movl    %edi, %edx
        movl    $(\register << 30) | 4, %eax
        movl    $GHCB_MSR, %ecx
        wrmsr
        VMGEXIT
        rdmsr
        andl    $0xfff, %eax
        cmpl    $5, %eax
        jne     failed
        pushl   %edx
        .endr
        popl    %edx
        popl    %ecx
        popl    %ebx
        popl    %eax
        addl    $4, %esp
        addl    $2, (%esp)
        iret

        # Termination requests: general; the host's protocol.
failed:
        movl    $0x100, %eax
        jmp     terminate
no_protocol:
        movl    $0x10100, %eax
terminate:
        movl    $GHCB_MSR, %ecx
        xorl    %edx, %edx
        wrmsr
        VMGEXIT
        hlt
        jmp     terminate

        # The serial port, and the port that ends the run.
plain:
        movl    $AT(not_snp), %esi
        movl    $not_snp_end - not_snp, %ecx
        movw    $0x3f8, %dx
        rep outsb
        movb    $1, %al
        outb    %al, $0xf4
        hlt

        .code64
start_64:
        # Page state change, by the MSR protocol.
        .irp    page, GHCB, HOST_PAGE
        movl    $\page | 0x14, %eax
        movl    $2 << 20, %edx          # to shared
        movl    $GHCB_MSR, %ecx
        wrmsr
        VMGEXIT
        rdmsr
        andl    $0xfff, %eax
        cmpl    $0x15, %eax
        jne     refused
        testl   %edx, %edx
        jnz     refused
        .endr

        shlq    $32, %rbp
        movl    $GDT, %edi
        leaq    gdt(%rip), %rsi
        movl    $3, %ecx
        rep movsq
        leaq    DIRECTORIES | 0x23(%rbp), %rax
        movl    $PDPT, %edi
        movl    $4, %ecx
1:      stosq
        addq    $0x1000, %rax
        loop    1b
        leaq    0xe3(%rbp), %rax
        movl    $DIRECTORIES, %edi
        movl    $4 * 512, %ecx
1:      stosq
        addq    $0x200000, %rax
        loop    1b
        leaq    0x63(%rbp), %rax
        movl    $FIRST_TABLE, %edi
        movl    $512, %ecx
1:      stosq
        addq    $0x1000, %rax
        loop    1b
        movq    $GHCB | 0x63, FIRST_TABLE + (GHCB >> 12) * 8
        movq    $HOST_PAGE | 0x63, FIRST_TABLE + (HOST_PAGE >> 12) * 8
        leaq    FIRST_TABLE | 0x23(%rbp), %rax
        movq    %rax, DIRECTORIES
        movl    $PML4, %eax
        movq    %rax, %cr3

        # Hashes of a kernel are of no use here: that page is the guest's to validate, as in a direct start.
        movl    $KERNEL_HASHES, %eax
        xorl    %ecx, %ecx
        xorl    %edx, %edx
        pvalidate

        leaq    payload(%rip), %rsi
        movl    $START, %edi
        movl    $payload_end - payload, %ecx
        rep movsb
        lgdt    boot_gdt_pointer(%rip)
        xorl    %eax, %eax
        xorl    %ebx, %ebx
        xorl    %ecx, %ecx
        xorl    %edx, %edx
        xorl    %esi, %esi
        xorl    %edi, %edi
        xorl    %ebp, %ebp
        xorl    %esp, %esp
        jmpq    *entry(%rip)
refused:
        movl    $0x11100, %eax          # Linux' set: page state change
        movl    $GHCB_MSR, %ecx
        xorl    %edx, %edx
        wrmsr
        VMGEXIT
        hlt
        jmp     refused

        # What the launch prepares, in this order (OvmfSevMetadata).
        .balign 16
metadata:
        .ascii  "ASEV"
        .long   metadata_end - metadata, 1, (metadata_end - sections) / 12
sections:
        .long   GDT, SECRETS - GDT, 1
        .long   SECRETS, 0x1000, 2
        .long   KERNEL_HASHES, 0x1000, 0x10
        .long   CPUID_PAGE, 0x1000, 3
        .long   (START) & ~0xfff, (((END) + 0xfff) & ~0xfff) - ((START) & ~0xfff), 1
metadata_end:

        # Entries of the GUIDed table: data, length, GUID; the last one says how long it is.
        .org    SIZE - 32 - 88
table:
        .long   KERNEL_HASHES + 0x400, 0x400
        .word   26
        .long   0x7255371f
        .word   0x3a3b, 0x4b04
        .byte   0x92, 0x7b, 0x1d, 0xa6, 0xef, 0xa8, 0xd4, 0x54
        .long   SIZE - (metadata - image)
        .word   22
        .long   0xdc886566
        .word   0x984a, 0x4798
        .byte   0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc
        .long   AT(hold)
        .word   22
        .long   0x00f771de
        .word   0x1a7e, 0x4fcb
        .byte   0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e
        .word   table_end - table
        .long   0x96b582de
        .word   0x1fb2, 0x45f7
        .byte   0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d
table_end:

        .org    SIZE - 16
        .code16
reset:
        jmp     start_16
        .org    SIZE
